"""The output file: its path is checked before anything is computed, and it is kept only if all checks pass."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.export.formats import FORMATS, SUFFIXES, named_by
from mmscconv.storage.disk import replacing


def format_of(out: Path, wanted: str | None) -> str:
    """Return the format of ``out``: ``wanted``, or the format that its suffix names.

    Raises:
        UserError: An unknown suffix without ``wanted``, or one that the format cannot have; weights that belong to
            another file; a folder that is missing or not writable.
    """
    found = wanted or named_by(out.suffix)
    if found is None:
        raise UserError(f'--out must end with {", ".join(SUFFIXES)}, or pass --format: {out}')
    format = FORMATS[found]
    if format.beside and out.suffix != format.suffix:
        raise UserError(f'--format {found}: --out must end with {format.suffix}, got {out}')
    for name, other in FORMATS.items():
        shared = set(format.beside) & set(other.beside)
        if name != found and shared and out.with_suffix(other.suffix).exists():
            taken = out.with_suffix(min(shared))
            raise UserError(f'{taken} belongs to {out.with_suffix(other.suffix)}: --out needs another name')
    if out.is_dir():
        raise UserError(f'--out is a folder, not a file: {out}')
    if not out.parent.is_dir():
        raise UserError(f'folder of --out is not there: {out.parent} (make it first)')
    if not os.access(out.parent, os.W_OK):
        raise UserError(f'folder of --out cannot be written to: {out.parent}')
    return found


def files_of(out: Path, format: str) -> list[Path]:
    """Return ``out`` and the files that are written beside it."""
    return [out, *map(out.with_suffix, FORMATS[format].beside)]


@contextmanager
def kept_if_right(out: Path) -> Iterator[Path]:
    """Yield the path of a file beside ``out`` that is renamed to ``out`` at the end, or deleted if anything fails.

    Raises:
        UserError: The file cannot be written, because of a full disk, for example.
    """
    try:
        with replacing(out) as unfinished:
            yield unfinished
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error
