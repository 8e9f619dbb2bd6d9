"""Atomic writing of files, and a clear error for a full disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmscconv.errors import UserError

# Disk full, quota exceeded, or file larger than the system allows.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Answers of network file systems that cannot flush a folder.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF)


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write ``content`` so that ``path`` holds either all of it or its old content, whenever the process ends.

    The bytes go to ``<path>.part`` in the same folder and are flushed to the disk before
    the file is renamed. A ``.part`` file of a killed process is overwritten by the next
    write to the same path.

    Raises:
        OSError: The bytes could not be written; the ``.part`` file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    try:
        with part.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
    finally:
        os.close(folder)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; the written file replaces ``path`` at the end.

    After an error, ``path`` is unchanged. The suffix is the same, because many writers
    choose the format by it.
    """
    path = Path(path)
    unfinished = path.with_name(f'.unfinished-{path.name}')
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with suppress(OSError):  # an error before this one says more
            unfinished.unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Make an empty file at ``path`` and its folders: better before long work than after it.

    Raises:
        UserError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UserError(f'cannot write {path.parent}: {error.strerror}') from error


@contextmanager
def full_disk_named(path: str | Path, way_out: str = 'go on with --resume') -> Iterator[None]:
    """Turn a full-disk error into a UserError that names ``path``, the file or folder written, and the free space."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        folder = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.is_dir())
        free = shutil.disk_usage(folder).free / 2**20
        raise UserError(
            f'cannot write {path}: {error.strerror} ({free:.1f} MiB free in {folder}; make room there, then {way_out})'
        ) from error
