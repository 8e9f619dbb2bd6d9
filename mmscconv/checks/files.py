"""Checks that the files that a config names exist."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError

DATA_ADVICE = 'put or link the data there, or name their folder with --data-root'


def datasets(loader: Mapping[str, Any] | None) -> Iterator[MutableMapping[str, Any]]:
    """Yield the innermost dataset configs of a dataloader config, through any wrappers."""
    pending = [loader.get('dataset')] if loader else []
    while pending:
        dataset = pending.pop(0)
        if isinstance(dataset, MutableMapping):
            inner = [dataset.get('dataset'), *(dataset.get('datasets') or [])]
            pending += [d for d in inner if d is not None]
            if 'dataset' not in dataset and 'datasets' not in dataset:
                yield dataset


def join(root: str | None, path: str | None) -> str:
    """Join as OpenMMLab's datasets do: an absolute path or a URL stands alone."""
    if not path or '://' in path or Path(path).is_absolute():
        return path or root or ''
    return str(Path(root or '') / path)


def _require(path: str, what: str, advice: str) -> None:
    if path and '://' not in path and not Path(path).exists():
        raise UserError(f'{what} is not there: {path} ({advice})')


def check_data(cfg: Mapping[str, Any], stages: Iterable[str]) -> None:
    """Raise UserError if a data folder or annotation file of a stage ('train', 'val', 'test') is missing.

    With ``backend_args``, paths that look local may be those of another storage: they are not looked for.
    """
    for stage in stages:
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            if dataset.get('backend_args'):
                continue
            root = dataset.get('data_root')
            own = cfg.get('data_root')
            unread = own and root and not root.startswith(own.rstrip('/'))
            hint = f'; the data_root={own!r} at the top of the config is not read by this data set' if unread else ''
            _require(join(root, None), f'data folder for {stage}', DATA_ADVICE + hint)
            _require(join(root, dataset.get('ann_file')), f'annotation file for {stage}', DATA_ADVICE)
            if any(transform.get('backend_args') for transform in dataset.get('pipeline') or ()):
                continue  # images in LMDB, for example, beside a local annotation file
            prefix = dataset.get('data_prefix') or {}
            for folder in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
                _require(join(root, folder), f'image folder for {stage}', DATA_ADVICE)
            if dataset.get('split') and not dataset.get('ann_file') and not prefix and dataset['type'] == 'ImageNet':
                _require(join(root, dataset['split']), f'image folder for {stage}', DATA_ADVICE)
        evaluators = cfg.get(f'{stage}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
            if not evaluator.get('backend_args'):
                _require(evaluator.get('ann_file') or '', f'annotation file of the {stage} evaluator', DATA_ADVICE)


def check_checkpoints(cfg: Mapping[str, Any], stages: Sequence[str] = ('train',)) -> None:
    """Raise UserError if ``load_from`` or, for training alone, a local ``Pretrained`` checkpoint is missing."""
    _require(cfg.get('load_from') or '', 'checkpoint', 'check the path')
    for init in _init_cfgs(cfg.get('model')) if 'train' in stages else ():
        if init.get('type') == 'Pretrained':
            _require(
                init.get('checkpoint') or '', 'pretrained checkpoint (init_cfg)', 'train it first, or check the path'
            )


def _init_cfgs(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == 'init_cfg':
                yield from [value] if isinstance(value, Mapping) else value or []
            else:
                yield from _init_cfgs(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _init_cfgs(value)


def require_images(names: Sequence[str], folder: str, path: str) -> None:
    """Raise UserError if files are not in ``folder``: listing folders is cheaper than asking for each file."""
    if '://' in folder:
        return
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listed:
            inner = Path(folder) / parent
            listed[parent] = set(os.listdir(inner)) if inner.is_dir() else set()  # noqa: PTH208, names alone
        if base not in listed[parent]:
            missing.append(name)
    if missing:
        raise UserError(
            f'{len(missing)} of {len(names)} images that {path} lists are not there, first '
            f'{Path(folder) / missing[0]} ({DATA_ADVICE})'
        )
