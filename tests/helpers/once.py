"""Folders that are made once for all workers of a test run."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def shared_folder(tmp_path_factory) -> Path:
    """Return the run's temporary folder, the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the run's folder ``name``, which the first worker that asks makes and fills by ``make(folder)``."""
    folder, done = (shared_folder(tmp_path_factory) / f'{name}{suffix}' for suffix in ('', '.done'))
    with (shared_folder(tmp_path_factory) / f'{name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
