"""Comparison of a checkpoint with a model and its optimizer, with the likely cause of differences."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mmscconv.errors import UserError
from mmscconv.storage.checkpoints import lacking_to_resume, shape_of, unwrapped, weights_of

# Settings that tell optimizers apart: the state of one is useless to another.
METHODS = ('momentum', 'betas', 'alpha', 'rho', 'lr_decay')


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
    """Raise UserError, with the likely cause, unless the checkpoint fills all of the model's weights."""
    unfilled, text = differences(model, checkpoint)
    if unfilled:
        raise UserError(f'the checkpoint is not of this model: {path}: {text} [{likely_cause(checkpoint, cfg)}]')


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


def likely_cause(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """Return the model settings, up to three, in which the checkpoint's own config differs from ``cfg``."""
    text = (checkpoint.get('meta') or {}).get('cfg')
    theirs = model_in(text) if isinstance(text, str) else None
    if not theirs:
        return 'other depth, alpha or config?'
    ours = dict(_settings(cfg['model'].get('module', cfg['model'])))
    theirs = dict(_settings(theirs.get('module', theirs)))
    differing = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    differing.sort(key=lambda key: key.count('.'))
    values = [f'{key}: {theirs.get(key, "unset")} there, {ours.get(key, "unset")} here' for key in differing[:3]]
    return '; '.join(values) or 'other depth, alpha or config?'


def _settings(node: Any, path: str = 'model') -> Iterator[tuple[str, Any]]:
    """Yield the dotted names and values of the settings on which the weights depend."""
    if not isinstance(node, Mapping):
        yield path, list(node) if isinstance(node, tuple) else node
        return
    for key, value in node.items():
        if key not in ('init_cfg', 'train_cfg', 'test_cfg', 'data_preprocessor') and not key.startswith('loss'):
            yield from _settings(value, f'{path}.{key}')


def model_in(config: str) -> dict[str, Any] | None:
    """Return ``model`` of a config text as mmengine writes it into checkpoints, without running it; None if absent."""
    try:
        for statement in ast.parse(config).body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], 'id', '') == 'model':
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
