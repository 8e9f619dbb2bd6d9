"""Marks for tests of other runtimes."""

from importlib.util import find_spec

import pytest


def runtime(*packages, extra):
    """Skip without ``packages``; else run in a process of its own, which alone loads the runtime and its threads."""
    missing = [name for name in packages if find_spec(name) is None]
    reason = f"{', '.join(missing)} is not installed: pip install --no-build-isolation '.[{extra}]'"
    return [pytest.mark.skipif(bool(missing), reason=reason), pytest.mark.apart()]
