"""What runs inside of the package while a test looks."""

from mmscconv.ops import native


def kernels_called(monkeypatch, module=native):
    """Return a list that gets the name of each C function that ``module`` calls from now on."""
    names, call = [], module.call
    monkeypatch.setattr(module, 'call', lambda name, *arguments: (names.append(name), call(name, *arguments)))
    return names
