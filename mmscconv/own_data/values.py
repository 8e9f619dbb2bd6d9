"""Texts and numbers in files of unknown origin."""

from __future__ import annotations

import codecs
from math import isfinite
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        UserError: The file cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode('utf-16' if utf16 else 'utf-8-sig')
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'not a text in UTF-8 or UTF-16: {path} ({error.reason} at byte {error.start})') from error


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
        raise TypeError(f'{value!r} is no number')
    return float(value)
