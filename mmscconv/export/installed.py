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


def check_installed(what: str, extra: str = 'export') -> None:
    """Raise UserError that names ``what`` if a package of ``extra`` is missing."""
    missing = [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}: pip install 'mmscconv[{extra}]'")
