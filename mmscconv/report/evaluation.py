"""COCO's numbers and precision-recall curves, by pycocotools."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from mmscconv.report.predicting import Predictions

COLUMNS = ('AP', 'AP50', 'AP75', 'AP S', 'AP M', 'AP L')
AREAS = ('all', 'small', 'medium', 'large')

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class ClassResult:
    """Numbers of a class: objects that count, ``COLUMNS`` with None where nothing can be measured, and a curve.

    ``curve`` is the precision at IoU 0.5 and recall 0, 0.01, ..., 1; None without objects.
    """

    name: str
    objects: int
    values: list[float | None]
    curve: Floats | None


@dataclass(frozen=True)
class Evaluation:
    """Numbers of all classes together, as in ``COLUMNS``, and of each."""

    values: list[float | None]
    classes: list[ClassResult]


def coco_eval(data: Predictions, found: Sequence[dict[str, Any]], **params: Any) -> COCOeval:
    """Return pycocotools' evaluation of predictions, run but not accumulated, with ``params`` set."""
    with redirect_stdout(io.StringIO()):
        results = data.truth.loadRes(list(found)) if found else _nothing(data.truth)
        evaluation = COCOeval(data.truth, results, 'bbox')
        evaluation.params.catIds, evaluation.params.imgIds = data.class_ids, data.image_ids
        evaluation.params.maxDets = data.most
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
    return evaluation


def _nothing(truth: Any) -> Any:
    """Return a COCO object without predictions; ``loadRes`` needs at least one."""
    results = type(truth)()
    results.dataset = {**truth.dataset, 'annotations': []}
    results.createIndex()
    return results


def evaluate(data: Predictions, classes: Sequence[str]) -> Evaluation:
    """Evaluate as the config's metric does: COCO's ten IoU thresholds, areas and limits of detections."""
    evaluation = coco_eval(data, data.found)
    with redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval['precision']  # IoU, recall, class, area, limit
    counted = _objects(data)
    results = []
    order = list(evaluation.params.catIds)  # pycocotools sorts the ids
    for name, class_id in zip(classes, data.class_ids, strict=True):
        of_class = precision[:, :, order.index(class_id), :, -1]
        values = [
            _mean(of_class[:, :, 0]),
            _mean(of_class[0, :, 0]),
            _mean(of_class[5, :, 0]),
            *(_mean(of_class[:, :, area]) for area in range(1, len(AREAS))),
        ]
        results.append(ClassResult(name, counted[class_id], values, of_class[0, :, 0] if counted[class_id] else None))
    return Evaluation([_or_none(value) for value in evaluation.stats[: len(COLUMNS)]], results)


def _objects(data: Predictions) -> dict[int, int]:
    counts = dict.fromkeys(data.class_ids, 0)
    for annotation in data.truth.loadAnns(data.truth.getAnnIds(imgIds=data.image_ids, catIds=data.class_ids)):
        counts[annotation['category_id']] += not annotation.get('iscrowd')
    return counts


def _mean(precision: Floats) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _or_none(value: float) -> float | None:
    return float(value) if value > -1 else None  # pycocotools writes -1 if there is nothing to measure
