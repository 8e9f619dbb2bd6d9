"""Decodes text files of other tools: UTF-8, with or without a byte order mark, or UTF-16 with one."""

from __future__ import annotations

import codecs

from mmscconv.errors import UserError

# UTF-32's little-endian mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF32_LE: 'utf-32',
    codecs.BOM_UTF32_BE: 'utf-32',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


def decode(data: bytes, path: str, kind: str = 'annotation file') -> tuple[str, list[str]]:
    """Return the text of a file's bytes, and a line about them where mmdet alone could not read them.

    Raises:
        UserError: The bytes are neither UTF-8 nor marked as another encoding.
    """
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), 'utf-8')
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f'{kind} is not {error.encoding.upper()}: {path} ({error.reason} at byte {error.start}; save it as UTF-8)'
        ) from error
    marked = f'the file begins with a byte order mark; it is read as {encoding.upper()}'
    return text, [] if encoding == 'utf-8' else [marked]
