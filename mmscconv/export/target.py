"""The output file: its path is checked before anything is computed, and it is kept only if all checks pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.storage.disk import replacing

FORMATS = {'.onnx': 'onnx', '.pt2': 'pt2'}


def format_of(out: Path, wanted: str | None) -> str:
    """Return the format of ``out``: ``wanted``, or the format that its suffix names.

    Raises:
        UserError: An unknown suffix without ``wanted``; a folder that is missing or not writable.
    """
    found = wanted or FORMATS.get(out.suffix)
    if found is None:
        raise UserError(f'--out must end with {" or ".join(FORMATS)}, or pass --format: {out}')
    if out.is_dir():
        raise UserError(f'--out is a folder, not a file: {out}')
    if not out.parent.is_dir():
        raise UserError(f'folder of --out is not there: {out.parent} (make it first)')
    if not os.access(out.parent, os.W_OK):
        raise UserError(f'folder of --out cannot be written to: {out.parent}')
    return found


@contextmanager
def kept_if_right(out: Path) -> Iterator[Path]:
    """Yield a file beside ``out`` that is renamed to ``out`` at the end, or deleted if anything fails."""
    try:
        with replacing(out) as unfinished:
            yield unfinished
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error
