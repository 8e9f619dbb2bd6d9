"""Errors that the user can mend: shown as one line, without a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable

from mmscconv.ops.backend import BackendUnavailableError

TRACEBACK_VARIABLE = 'MMSCCONV_TRACEBACK'


class UserError(Exception):
    """A problem outside of the program; the message names the thing and the way out, in one line.

    Args:
        message: Text of the error; line breaks, from a file's content or name, become blanks.
    """

    def __init__(self, message: str = '') -> None:
        super().__init__(' '.join(message.splitlines()))


def one_line(error: Exception) -> str:
    """Return the error's message alone, also if a data-loader worker wrapped the message in its traceback."""
    text = str(error).strip()
    return text.splitlines()[-1].split(f'{UserError.__name__}: ', 1)[-1] if text else repr(error)


def warn(text: str) -> None:
    """Write ``text`` to the current log as a warning; to the screen if no run has begun."""
    from mmengine.logging import print_log

    print_log(text, logger='current', level=logging.WARNING)


def run(main: Callable[[], None]) -> int:
    """Call ``main`` and print an error that the user can mend as one line. Return the exit status: 0, or 2."""
    logging.raiseExceptions = False  # or a log on a full disk prints a traceback for each line
    try:
        main()
    except (UserError, BackendUnavailableError) as error:
        if os.environ.get(TRACEBACK_VARIABLE) == '1':
            traceback.print_exc()
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 2
    return 0
