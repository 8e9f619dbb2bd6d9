"""Spies on the inside of the package: the kernels that a call runs, warnings, and the like."""

from mmscconv.ops import native


def kernels_called(monkeypatch, module=native):
    """Return a list that gets the name of each C function that ``module`` calls from now on."""
    names, call = [], module.call
    monkeypatch.setattr(module, 'call', lambda name, *arguments: (names.append(name), call(name, *arguments)))
    return names
