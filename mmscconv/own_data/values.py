"""Texts and numbers in files of unknown origin."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

from mmscconv.checks.text import decode
from mmscconv.errors import UserError


def read_text(path: Path) -> str:
    """Return the text of a file in an encoding of :func:`mmscconv.checks.text.decode`.

    Raises:
        UserError: The file cannot be read, or its bytes are not text.
    """
    try:
        return decode(path.read_bytes(), str(path), 'text file')[0]
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error


def as_integer(value: Any) -> int | None:
    """Return 3 for 3, 3.0, '3' and '3.0', and None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return int(value if isinstance(value, int) else number) if isfinite(number) and number == int(number) else None


def as_number(value: Any) -> float:
    """Return a number, also of its text.

    Raises:
        TypeError: Anything else, such as True or None.
        ValueError: A text that is no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f'{value!r} is not a number')
    return float(value)
