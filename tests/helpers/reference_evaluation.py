"""Average precision as COCO defines it, written from its definition, to compare the evaluation with.

Matching: for each image and class, detections in the order of their scores take the free object that they overlap
most; one that fits only a crowd counts as neither hit nor miss. Precision: the mean over ten overlaps and over the
classes that have objects of the interpolated precision at 101 recalls.
"""

from dataclasses import dataclass

import numpy as np

OVERLAPS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Object:
    """An object, or with a score a detection: image, class name, (x, y, width, height)."""

    image: object
    name: str
    box: tuple[float, float, float, float]
    crowd: bool = False
    score: float = 0.0


def overlap(detection, truth):
    """Return the intersection over the union, for crowds over the detection's own area."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = detection.box, truth.box
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    common = max(width, 0) * max(height, 0)
    whole = aw * ah if truth.crowd else aw * ah + bw * bh - common
    return common / whole if whole else 0.0


def hits(detections, truths, threshold):
    """Return (score, hit) of each detection of one image and class that counts."""
    free = [t for t in truths if not t.crowd]
    crowds = [t for t in truths if t.crowd]
    found = []
    for detection in sorted(detections, key=lambda d: -d.score):
        best = max(free, key=lambda t: overlap(detection, t), default=None)
        if best is not None and overlap(detection, best) >= threshold:
            free.remove(best)
            found.append((detection.score, True))
        elif not any(overlap(detection, t) >= threshold for t in crowds):
            found.append((detection.score, False))
    return found


def average_precision(objects, detections, classes):
    """Return the mean average precision, -1 if there is nothing to find."""
    values = []
    images = {o.image for o in (*objects, *detections)}
    for name in classes:
        count = sum(o.name == name and not o.crowd for o in objects)
        if not count:
            continue
        for threshold in OVERLAPS:
            found = []
            for image in images:
                theirs = (
                    [x for x in things if x.image == image and x.name == name] for things in (detections, objects)
                )
                found += hits(*theirs, threshold)
            right = np.array([hit for _, hit in sorted(found, reverse=True)], bool)
            true = np.cumsum(right)
            recall, precision = true / count, true / np.arange(1, len(right) + 1)
            values += [max(precision[recall >= r - 1e-12], default=0.0) for r in RECALLS]
    return float(np.mean(values)) if values else -1.0
