"""Errors of torch, mmengine, mmdet and mmpretrain: the one place that tells them apart by their texts and origins."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from mmscconv.errors import UserError

REFUSALS = (AssertionError, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError)


@contextmanager
def explained(what: str, errors: tuple[type[Exception], ...] = REFUSALS) -> Iterator[None]:
    """Turn an error from a registry, a layer or a config into one line that begins with ``what``.

    Args:
        what: Beginning of the message, such as 'config x.py'.
        errors: Types to turn; UserErrors stay as they are.

    Raises:
        UserError: One of ``errors`` was raised in the context.
    """
    try:
        yield
    except UserError:
        raise
    except errors as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error  # a KeyError's text is its repr
        reason = ' '.join(str(text).split())
        raise UserError(f'{what}: {reason or type(error).__name__}') from error


def flat_message(error: BaseException) -> str:
    """Return the error's message without line breaks; empty if it has none."""
    return ' '.join(str(error).split())


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def user_message(error: Exception) -> str | None:
    """Return the line that tells the user which data set or setting of the config is wrong; None for other errors.

    Known are errors at the start of a run: a data set that refuses its files, a downloaded
    checkpoint that holds code, a setting that mmengine's builders refuse.
    """
    if isinstance(error, pickle.UnpicklingError):
        return f'a fetched checkpoint may run code when loaded: {str(error).splitlines()[0]} (pass --trusted)'
    if isinstance(error, AssertionError | RuntimeError) and _raised_by_a_dataset(error):
        message = flat_message(error)
        return message + (' (pass --download)' if 'download=True' in message else '')
    if _raised_by_building(error):
        return f'cannot build what the config asks for: {flat_message(error)}'
    return None


DATASETS = [(package, 'datasets') for package in ('mmdet', 'mmpretrain', 'mmscconv')]


def says_no_images(error: ValueError) -> bool:
    """Return whether mmengine's data set kept no image: mmengine then concatenates an empty list."""
    return 'need at least one array' in str(error)


def forbidden_object(error: pickle.UnpicklingError) -> str | None:
    """Return the name of the object that ``torch.load(weights_only=True)`` refused; None if the file is damaged."""
    lines = [line for line in str(error).splitlines() if 'GLOBAL' in line]
    return lines[0].split('GLOBAL ')[1].split()[0] if lines else None


def _raised_by_a_dataset(error: Exception) -> bool:
    """Return whether an OpenMMLab data set refused its files; its assertions are messages to the user."""
    parts = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
    return any(pair in DATASETS for pair in pairwise(parts))


def _raised_by_building(error: Exception) -> bool:
    """Return whether mmengine refused a setting of the config; it builds data sets and optimizers at a run's start."""
    calls = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)[-2:]}
    return isinstance(error, KeyError | TypeError | ValueError) and 'build_functions.py' in calls
