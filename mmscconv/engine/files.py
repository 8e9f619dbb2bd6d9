"""Writes files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to, which takes its place at the end.

    After an error, ``path`` is as it was before. The name has the same suffix, by
    which many writers choose a format.
    """
    path = Path(path)
    unfinished = path.with_name(f'.unfinished-{path.name}')
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
