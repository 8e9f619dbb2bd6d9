"""Finds misspelt keys at the top of a config, which mmengine ignores."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.runner import Runner

from mmscconv.errors import UserError, warn

# Keys at the top of a config that mmengine and mmdet read besides the runner's arguments.
OTHERS = (
    'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval', 'find_unused_parameters',
    'model_wrapper_cfg', 'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline',
)  # fmt: skip
READ_HERE = ('input_shape', 'metainfo')  # by this package's tools
LIKE = 0.88


def known_keys() -> set[str]:
    """Return the keys at the top of a config that have a meaning of their own."""
    return {*inspect.signature(Runner.__init__).parameters, *OTHERS} - {'self', 'cfg'}


def check_keys(config: Mapping[str, Any], set_keys: Iterable[str], name: str) -> None:
    """Look for misspelt keys at the top of a config and of ``--cfg-options``; deeper ones fail when they are used.

    A config may hold variables of its own, so one that is only like a known key is a
    warning. An option that the config does not have has no effect at all.

    Args:
        config: As read from its file.
        set_keys: Keys of ``--cfg-options``, in dotted form.
        name: Name of the config's file.

    Raises:
        UserError: An option resembles a known key.
    """
    known = known_keys()
    for key in config:
        meant = _meant(key, known)
        if meant and not key.startswith('_'):
            warn(f'{name} sets {key!r}, which nothing reads: did you mean {meant!r}?')
    for key in {key.split('.')[0]: None for key in set_keys}:
        if key in known or key in READ_HERE:
            continue
        if key in config:
            warn(
                f'--cfg-options sets {key!r}, a variable of {name}: what was made from it there keeps its values, set '
                'those themselves, such as train_dataloader.dataset'
            )
            continue
        meant = _meant(key, known | set(config))
        if meant:
            raise UserError(f'--cfg-options sets {key!r}, which nothing reads: did you mean {meant!r}?')
        warn(f'--cfg-options sets {key!r}, which is neither in {name} nor known to mmengine')


def _meant(key: str, known: set[str]) -> str | None:
    """Return the known key that ``key`` is like, None for a known key."""
    if key in known or key[-1].isdigit():  # a numbered name is not misspelt
        return None
    likely = [name for name in known if not name.startswith('tta_')]  # test_pipeline is almost tta_pipeline
    return next(iter(difflib.get_close_matches(key, likely, 1, LIKE)), None)
