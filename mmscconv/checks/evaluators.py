"""Checks that the evaluators' ground truth is that of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmscconv.checks.coco import read_coco
from mmscconv.checks.files import datasets, join
from mmscconv.checks.voc import image_names
from mmscconv.errors import UserError, warn


def check_evaluators(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Compare the annotation file of each COCO evaluator with the data set's.

    Raises:
        UserError: The evaluator has no ground truth, or that of other images.
    """
    for stage in stages:
        loader = cfg.get(f'{stage}_dataloader')
        for name, evaluator in _coco_evaluators(cfg, stage):
            truth = evaluator.get('ann_file')
            if not truth:
                for dataset in datasets(loader):
                    _require_instances(dataset, name, stage)
                _require_ids_once(list(datasets(loader)), name, stage)
                continue
            paths = [join(dataset.get('data_root'), dataset.get('ann_file')) for dataset in datasets(loader)]
            if all(_is_local(path) for path in (*paths, truth)):
                _require_same_images(paths, truth, f'{name}.ann_file', f'{stage}_dataloader')
            if any(dataset.get('indices') is not None for dataset in datasets(loader)):
                left_out = f'{name} counts all objects of the others as missed'
                warn(f'{stage}_dataloader takes a part of its images (indices): {left_out}')


def _is_local(path: str) -> bool:
    return path.endswith('.json') and '://' not in path and Path(path).is_file()


def _image_ids(dataset: Mapping[str, Any]) -> list[Any]:
    """Return the ids of the images of a COCO file or a VOC list; none where it is not local."""
    path = join(dataset.get('data_root'), dataset.get('ann_file'))
    if _is_local(path):
        return [image['id'] for image in read_coco(path)[0]['images']]
    return image_names(path) if path.endswith('.txt') and '://' not in path and Path(path).is_file() else []


def _require_ids_once(sets: Sequence[Mapping[str, Any]], evaluator: str, stage: str) -> None:
    """Raise UserError if two data sets of a loader have an image of one id: the evaluator would mix their boxes."""
    if len(sets) < 2:
        return
    seen: dict[Any, str] = {}
    for dataset in sets:
        path = join(dataset.get('data_root'), dataset.get('ann_file'))
        for image in {*_image_ids(dataset)}:
            other = seen.setdefault(image, path)
            if other != path:
                raise UserError(
                    f'{stage}_dataloader has an image {image!r} in {other} and in {path}, whose boxes {evaluator} '
                    'would take for those of one image: give the images ids of their own, or test the sets apart'
                )


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


def _require_same_images(paths: Sequence[str], truth: str, setting: str, loader: str) -> None:
    """Raise UserError unless ``truth`` has the data sets' images, and no others, whose objects would be missed."""
    others = [path for path in paths if Path(path).resolve() != Path(truth).resolve()]
    if not others:
        return
    theirs = {image['id']: image['file_name'] for image in read_coco(truth)[0]['images']}
    tested = set()
    for path in others:
        for image in read_coco(path)[0]['images']:
            other = theirs.get(image['id'])
            if other != image['file_name']:
                told = f'image {image["id"]} is {image["file_name"]} in {path}, '
                told += f'but {other} in {truth}' if other else f'but not in {truth}'
                raise UserError(f'{setting} is of other images than {loader}: {told} (set both to the same file)')
            tested.add(image['id'])
    untested = [name for image, name in theirs.items() if image not in tested]
    if untested and len(others) == len(paths):
        raise UserError(
            f'{setting} has {len(untested)} images that {loader} does not test, first {untested[0]}: all their objects '
            'would be missed (set both to the same file)'
        )
