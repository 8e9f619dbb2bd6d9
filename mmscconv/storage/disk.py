"""Atomic writing of files, a clear error for a full disk, and folders that one training at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from mmscconv.errors import UserError

# Disk full, quota exceeded, or file larger than the system allows.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Answers of network file systems that cannot flush a folder.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.EBADF)
_HELD = (errno.EACCES, errno.EAGAIN)
LOCK = 'train.lock'


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
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder for the training of this process; on a file system without locks, do nothing.

    The lock ends with the process, whatever ends it. It is one of ``lockf``, which no child inherits: workers that
    outlive a killed training for some seconds would keep it from being resumed.

    Raises:
        UserError: Another process holds the folder.
    """
    path = Path(folder) / LOCK
    with ExitStack() as stack:
        with suppress(OSError):  # of a file system without locks, or of another user's file
            if not _locked(stack.enter_context(path.open('a'))):
                raise UserError(f'another training writes to {folder}: pass --work-dir')
            stack.callback(_remove, path)
        yield


def _locked(file: IO[str]) -> bool:
    """Lock a file, and return whether that was possible; False if another process has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


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
