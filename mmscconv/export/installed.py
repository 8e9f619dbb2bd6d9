"""Packages of the runtimes, which nothing else here needs."""

from __future__ import annotations

import importlib.util

from mmscconv.errors import UserError

# Extra of this package -> packages that are imported.
PACKAGES = {
    'export': ('onnx', 'onnxruntime'),
    'openvino': ('onnx', 'openvino'),
    'ncnn': ('ncnn', 'pnnx'),
}


def install_command(extra: str) -> str:
    """Return the command that installs the packages of ``extra``, and where to run it: the package is on no index."""
    return f"pip install --no-build-isolation '.[{extra}]' (in the checkout)"


def check_installed(what: str, extra: str = 'export') -> None:
    """Raise UserError that names ``what`` if a package of ``extra`` is missing."""
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'{what} needs {" and ".join(missing)}: {install_command(extra)}')
