"""Predictions matched with the ground truth of each image: found, false, missed, or taken for another class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmscconv.report.evaluation import Floats, coco_eval
from mmscconv.report.predicting import Predictions

IOU = 0.5
ALL_AREAS = {'areaRng': [[0, 1e10]], 'areaRngLbl': ['all']}


@dataclass(frozen=True)
class Verdicts:
    """Matches of an image's predictions with its objects; each entry is an annotation in COCO's form.

    Args:
        image_id: Id of the image.
        hits: (prediction, object) of one class.
        confused: (prediction, object) of two classes.
        false: Predictions that overlap no free object.
        missed: Objects that no prediction overlaps.
    """

    image_id: int
    hits: list[tuple[dict[str, Any], dict[str, Any]]]
    confused: list[tuple[dict[str, Any], dict[str, Any]]]
    false: list[dict[str, Any]]
    missed: list[dict[str, Any]]

    @property
    def mistakes(self) -> int:
        """Number of wrong boxes: confused, false and missed ones."""
        return len(self.confused) + len(self.false) + len(self.missed)


def best_threshold(data: Predictions) -> float:
    """Return the score threshold with the best F1, over all classes, at IoU 0.5; 1 without a hit."""
    evaluation = coco_eval(data, data.found, iouThrs=np.array([IOU]), **ALL_AREAS)
    scores: list[float] = []
    hits: list[bool] = []
    objects = 0
    for result in filter(None, evaluation.evalImgs):
        counted = ~result['dtIgnore'][0].astype(bool)
        scores += list(np.array(result['dtScores'])[counted])
        hits += list(result['dtMatches'][0][counted] > 0)
        objects += int((~np.array(result['gtIgnore'], bool)).sum())
    if not any(hits):
        return 1.0
    order = np.argsort(scores)[::-1]
    true = np.cumsum(np.array(hits)[order])
    f1 = 2 * true / (np.arange(1, len(order) + 1) + objects)
    return float(np.array(scores)[order][int(np.argmax(f1))])


def match(data: Predictions, threshold: float) -> list[Verdicts]:
    """Match predictions from ``threshold`` on with objects of whatever class, by pycocotools, the best score first."""
    found = [prediction for prediction in data.found if prediction['score'] >= threshold]
    evaluation = coco_eval(data, found, iouThrs=np.array([IOU]), useCats=0, **ALL_AREAS)
    predictions, objects = evaluation.cocoDt.anns, evaluation.cocoGt.anns
    matched = {result['image_id']: result for result in evaluation.evalImgs if result}
    verdicts = []
    for image_id in data.image_ids:
        result = Verdicts(image_id, [], [], [], [])
        verdicts.append(result)
        if image_id not in matched:
            continue
        of_image = matched[image_id]
        for i, own in enumerate(of_image['dtIds']):
            other = int(of_image['dtMatches'][0][i])
            if of_image['dtIgnore'][0][i]:
                continue  # on a crowd
            if not other:
                result.false.append(predictions[own])
            else:
                pair = predictions[own], objects[other]
                same = pair[0]['category_id'] == pair[1]['category_id']
                (result.hits if same else result.confused).append(pair)
        for i, own in enumerate(of_image['gtIds']):
            if not of_image['gtIgnore'][i] and not of_image['gtMatches'][0][i]:
                result.missed.append(objects[int(own)])
    return verdicts


def confusion(verdicts: Sequence[Verdicts], class_ids: Sequence[int]) -> Floats:
    """Return counts of shape (classes + 1, classes + 1): rows are objects, columns predictions, the last is nothing."""
    places = {class_id: i for i, class_id in enumerate(class_ids)}
    nothing = len(class_ids)
    counts = np.zeros((nothing + 1, nothing + 1))
    for verdict in verdicts:
        for prediction, truth in (*verdict.hits, *verdict.confused):
            counts[places[truth['category_id']], places[prediction['category_id']]] += 1
        for prediction in verdict.false:
            counts[nothing, places[prediction['category_id']]] += 1
        for truth in verdict.missed:
            counts[places[truth['category_id']], nothing] += 1
    return counts


def worst(verdicts: Sequence[Verdicts], count: int) -> list[Verdicts]:
    """Return the images with the most mistakes; those without are left out."""
    return [v for v in sorted(verdicts, key=lambda v: v.mistakes, reverse=True) if v.mistakes][:count]
