"""Checks of a config before anything long starts: do the files that it names exist?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError

DATA_ADVICE = 'put or link the data there, or pass --data-root'


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
    """Raise UserError if a data folder or annotation file of a stage ('train', 'val', 'test') is missing."""
    for stage in stages:
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            root = dataset.get('data_root')
            _require(join(root, None), f'data folder for {stage}', DATA_ADVICE)
            _require(join(root, dataset.get('ann_file')), f'annotation file for {stage}', DATA_ADVICE)
            prefix = dataset.get('data_prefix') or {}
            for folder in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
                _require(join(root, folder), f'image folder for {stage}', DATA_ADVICE)
            if dataset.get('split') and not dataset.get('ann_file') and not prefix and dataset['type'] == 'ImageNet':
                _require(join(root, dataset['split']), f'image folder for {stage}', DATA_ADVICE)
        evaluators = cfg.get(f'{stage}_evaluator') or []
        for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
            _require(evaluator.get('ann_file') or '', f'annotation file of the {stage} evaluator', DATA_ADVICE)


def check_checkpoints(cfg: Mapping[str, Any]) -> None:
    """Raise UserError if ``load_from`` or a local ``Pretrained`` checkpoint is missing."""
    _require(cfg.get('load_from') or '', 'checkpoint', 'check the path')
    for init in _init_cfgs(cfg.get('model')):
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
