"""Checks that the evaluators' ground truth is that of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmscconv.checks.coco import read_coco
from mmscconv.checks.files import datasets, join
from mmscconv.errors import UserError


def check_evaluators(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Compare the annotation file of each COCO evaluator with the data set's.

    Raises:
        UserError: The evaluator has no ground truth, or that of other images.
    """
    for stage in stages:
        loader = cfg.get(f'{stage}_dataloader')
        for name, evaluator in _coco_evaluators(cfg, stage):
            truth = evaluator.get('ann_file')
            for dataset in datasets(loader):
                if not truth:
                    _require_instances(dataset, name, stage)
                    continue
                path = join(dataset.get('data_root'), dataset.get('ann_file'))
                local = path.endswith('.json') and '://' not in path + truth
                if local and Path(path).is_file() and Path(truth).is_file():
                    _require_images_of(path, truth, f'{name}.ann_file', f'{stage}_dataloader')


def _coco_evaluators(cfg: Mapping[str, Any], stage: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    evaluators = cfg.get(f'{stage}_evaluator') or []
    for evaluator in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        if isinstance(evaluator, Mapping) and str(evaluator.get('type')).endswith('CocoMetric'):
            yield f'{stage}_evaluator', evaluator


def _require_instances(dataset: Mapping[str, Any], evaluator: str, stage: str) -> None:
    """Raise UserError unless the pipeline hands the annotations on, which stand in for a file."""
    for transform in dataset.get('pipeline') or ():
        if transform.get('type') == 'PackDetInputs' and 'instances' not in transform.get('meta_keys', ()):
            raise UserError(
                f'{evaluator} has no ann_file, and the pipeline of {stage}_dataloader hands it no annotations: set '
                f"{evaluator}.ann_file, or add 'instances' to meta_keys in PackDetInputs"
            )


def _require_images_of(path: str, truth: str, setting: str, loader: str) -> None:
    if Path(path).resolve() == Path(truth).resolve():
        return
    theirs = {image['id']: image['file_name'] for image in read_coco(truth)[0]['images']}
    for image in read_coco(path)[0]['images']:
        other = theirs.get(image['id'])
        if other != image['file_name']:
            told = f'image {image["id"]} is {image["file_name"]} in {path}, '
            told += f'but {other} in {truth}' if other else f'but not in {truth}'
            raise UserError(f'{setting} is of other images than {loader}: {told} (set both to the same file)')
