"""Finds settings that mmengine ignores: misspelt keys at the top of a config, and epochs where iterations count."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
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


def check_counting(cfg: Mapping[str, Any]) -> None:
    """Warn of hooks and schedules that count epochs in a training that counts iterations: it is a single epoch."""
    loop = cfg.get('train_cfg') or {}
    if not str(loop.get('type', '')).endswith('IterBasedTrainLoop') and ('type' in loop or loop.get('by_epoch', True)):
        return
    found = [*_hooks_by_epoch(cfg.get('default_hooks') or {}), *_schedules_by_epoch(cfg.get('param_scheduler'))]
    if found:
        warn(
            f'train_cfg counts iterations, but these settings count epochs: {"; ".join(found)}; set them to False, or '
            'convert_to_iter_based of a schedule to True'
        )


def _hooks_by_epoch(hooks: Mapping[str, Any]) -> Iterator[str]:
    for name, setting, effect in (
        ('checkpoint', 'by_epoch', 'saves at the end alone'),
        ('logger', 'log_metric_by_epoch', 'logs each validation at step 0'),
    ):
        hook = hooks.get(name, {})  # mmengine adds one that is not there
        if isinstance(hook, Mapping) and hook.get(setting, True):
            yield f'default_hooks.{name}.{setting}: {effect}'


def _schedules_by_epoch(schedules: Any, path: str = 'param_scheduler') -> Iterator[str]:
    if isinstance(schedules, Mapping) and 'type' in schedules:
        kind = str(schedules['type']).rpartition('.')[2]
        # One on a plateau steps at each validation.
        if (
            schedules.get('by_epoch', True)
            and not schedules.get('convert_to_iter_based')
            and not kind.startswith('ReduceOnPlateau')
        ):
            yield f'{path}.by_epoch: {kind} never steps'
    elif isinstance(schedules, Mapping | list | tuple):
        for key, inner in schedules.items() if isinstance(schedules, Mapping) else enumerate(schedules):
            yield from _schedules_by_epoch(inner, f'{path}.{key}')


def _meant(key: str, known: set[str]) -> str | None:
    """Return the known key that ``key`` is like, None for a known key."""
    if key in known or key[-1].isdigit():  # a numbered name is not misspelt
        return None
    likely = [name for name in known if not name.startswith('tta_')]  # test_pipeline is almost tta_pipeline
    return next(iter(difflib.get_close_matches(key, likely, 1, LIKE)), None)
