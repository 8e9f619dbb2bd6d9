"""Comparison of a checkpoint with a model and its optimizer, with the likely cause of differences."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mmscconv.errors import UserError, warn
from mmscconv.layers import deploy, sru
from mmscconv.storage.checkpoints import lacking_to_resume, require_finite, shape_of, unwrapped, weights_of

# Ends of the keys of earlier deploy forms, which a model takes and drops.
DROPPED = (*(f'sru.{key}' for key in sru.EARLIER_KEYS), *deploy.EARLIER_KEYS)
# Settings of a model that change no result of a trained one.
NOT_OF_THE_MODEL = (
    'init_cfg', 'train_cfg', 'test_cfg', 'data_preprocessor', 'pretrained', 'frozen_stages', 'norm_eval', 'with_cp',
    'backend', 'recompute', 'requires_grad',
)  # fmt: skip
# Settings of a data preprocessor on which its numbers depend; their buffers are in no checkpoint.
OF_PIXELS = ('mean', 'std', 'bgr_to_rgb', 'rgb_to_bgr', 'to_rgb')
# Settings that tell optimizers apart: the state of one is useless to another.
METHODS = ('momentum', 'betas', 'alpha', 'rho', 'lr_decay')
# Settings of an optimizer's wrapper that change the steps, and what they are where a config does not say.
OF_STEPS = {'type': 'OptimWrapper', 'accumulative_counts': 1, 'clip_grad': None, 'dtype': None}


def differences(model: nn.Module, checkpoint: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of the model's weights that the checkpoint does not fill, and the differences in words."""
    # A TTA model holds the detector in its attribute 'module'.
    want = {k.removeprefix('module.'): tuple(v.shape) for k, v in model.state_dict().items()}
    have = {k: shape_of(v) for k, v in unwrapped(weights_of(checkpoint, 'of the run')).items()}
    missing = [k for k in want if k not in have]
    mismatched = [f'{k} {have[k]} instead of {want[k]}' for k in want if k in have and have[k] != want[k]]
    lists = [
        ('missing', missing),
        ('of another shape', mismatched),
        ('not in the model', [k for k in have if k not in want]),
    ]
    text = '; '.join(f'{len(keys)} {kind}, first {keys[0]}' for kind, keys in lists if keys)
    return len(missing) + len(mismatched), text


def require_filled(model: nn.Module, checkpoint: Mapping[str, Any], cfg: Mapping[str, Any], path: str) -> None:
    """Compare a checkpoint with the model that is to do its work, and warn of settings on which no weight depends.

    Raises:
        UserError: The checkpoint does not fill all of the model's weights, or has more for one of its parts, as that
            of a deeper backbone; with the likely cause. Or its weights are not finite.
    """
    unfilled, text = differences(model, checkpoint)
    if unfilled or left_over(model, checkpoint):
        raise UserError(f'the checkpoint is not of this model: {path}: {text} [{likely_cause(checkpoint, cfg)}]')
    require_finite(path, weights_of(checkpoint, path))
    differing = differing_settings(checkpoint, cfg)
    if differing:
        warn(f'{path} was trained with other settings of the model, which its weights do not show: {differing}')


def left_over(model: nn.Module, checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the checkpoint's weights that a part of the model, such as its backbone, has no place for."""
    want = {k.removeprefix('module.') for k in model.state_dict()}
    parts = {k.partition('.')[0] for k in want}
    return [
        k
        for k in unwrapped(weights_of(checkpoint, 'of the run'))
        if k not in want and k.partition('.')[0] in parts and not k.endswith(DROPPED) and '.loss' not in k
    ]


def optimizer_problem(optimizer: Optimizer, checkpoint: Mapping[str, Any]) -> str | None:
    """Return why ``optimizer`` cannot resume from a checkpoint, or None; torch itself finds only some of the causes."""
    lacking = lacking_to_resume(checkpoint)
    if lacking:
        return f'it has {lacking}'
    theirs, ours = checkpoint['optimizer'].get('param_groups'), optimizer.param_groups
    if theirs is None:
        return None  # several optimizers
    name = type(optimizer).__name__
    if [len(group['params']) for group in theirs] != [len(group['params']) for group in ours]:
        return f'it has other groups of parameters than {name} here (check optim_wrapper.paramwise_cfg)'
    differing = [key for key in METHODS if (key in theirs[0]) != (key in ours[0])]
    if differing:
        only = ', '.join(differing)
        return f'its optimizer is another one than {name}, by {only} (check optim_wrapper.optimizer)'
    return None


def averages_problem(checkpoint: Mapping[str, Any]) -> str | None:
    """Return why a training without ``EMAHook`` cannot resume from a checkpoint, or None."""
    if 'ema_state_dict' not in checkpoint:
        return None
    hooks = [*(value_in(checkpoint, 'default_hooks') or {}).values(), *(value_in(checkpoint, 'custom_hooks') or [])]
    ours = (hook for hook in hooks if isinstance(hook, Mapping) and str(hook.get('type')).endswith('EMAHook'))
    settings = _leaves({'type': 'EMAHook', **next(ours, {})}, 'default_hooks.ema')
    options = ' '.join(f'{name}={value}' for name, value in settings)
    return f'its weights are the averages of an EMAHook, and this training has none (pass --cfg-options {options})'


def likely_cause(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Return the model settings, up to three, in which the checkpoint's own config differs from ``cfg``."""
    return differing_settings(checkpoint, cfg) or 'other depth, alpha or config?'


def differing_settings(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Return the first three differing settings in words; nothing where the checkpoint has no config."""
    theirs = value_in(checkpoint, 'model')
    if not theirs:
        return ''
    theirs = theirs.get('module', theirs)
    ours = cfg['model'].get('module', cfg['model'])
    there = dict(_settings(theirs)) | _of_pixels(theirs, value_in(checkpoint, 'data_preprocessor'))
    here = dict(_settings(ours)) | _of_pixels(ours, cfg.get('data_preprocessor'))
    return _in_words(there, here)


def _of_pixels(model: Mapping[str, Any], at_the_top: Any) -> dict[str, Any]:
    """Return how images are normalized, by the data preprocessor of the model's config or at the config's top level."""
    settings = _leaves(model.get('data_preprocessor') or at_the_top or {}, 'data_preprocessor')
    # False, None and a key that is not there mean the same.
    return {name: value for name, value in settings if value and name.partition('.')[2] in OF_PIXELS}


def schedule_without_effect(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Return up to three settings of optimizer and schedule that a resumed training takes from the checkpoint."""
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for name, part in (('optim_wrapper', 'optimizer'), ('param_scheduler', None)):
        for found, source in ((theirs, value_in(checkpoint, name)), (ours, cfg.get(name))):
            found |= dict(_leaves(source.get(part) if part and isinstance(source, Mapping) else source, name))
    return _in_words(theirs, ours) if theirs else ''


def other_steps(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Return up to three settings of the optimizer's steps in which a resumed training differs from the checkpoint's.

    Unlike the optimizer's own settings, they are the config's from there on.
    """
    theirs, ours = value_in(checkpoint, 'optim_wrapper'), cfg.get('optim_wrapper')
    if not isinstance(theirs, Mapping) or not isinstance(ours, Mapping):
        return ''
    return _in_words(_of_steps(theirs), _of_steps(ours))


def _of_steps(wrapper: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: default if wrapper.get(key) is None else wrapper[key] for key, default in OF_STEPS.items()}
    kind = settings['type']
    settings['type'] = getattr(kind, '__name__', str(kind)).rpartition('.')[2]
    return dict(_leaves(settings, 'optim_wrapper'))


def _in_words(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    differing.sort(key=lambda key: key.count('.'))
    return '; '.join(f'{key}: {theirs.get(key, "unset")} there, {ours.get(key, "unset")} here' for key in differing[:3])


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of all settings below ``node``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f'{path}.{key}')
    elif isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        for i, item in enumerate(node):
            yield from _leaves(item, f'{path}.{i}')
    else:
        yield path, list(node) if isinstance(node, tuple) else node


def _settings(node: Any, path: str = 'model') -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of the settings on which the weights depend."""
    if not isinstance(node, Mapping):
        yield path, list(node) if isinstance(node, tuple) else node
        return
    for key, value in node.items():
        if key not in NOT_OF_THE_MODEL and not key.startswith('loss'):
            yield from _settings(value, f'{path}.{key}')


def value_in(checkpoint: Mapping[str, Any], name: str) -> Any:
    """Return what the config in a checkpoint, as mmengine writes it, says for ``name``, without running it, or None."""
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        return None
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], 'id', '') == name:
                return _literal(statement.value)
    except (SyntaxError, ValueError):
        pass
    return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict' and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.literal_eval(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True) if k}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)
