"""Known metrics of OpenMMLab's evaluators: their factor to percent, and which of two values is better."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of metric.

    Args:
        factor: By which its values are percentages.
        best: The better of values.
    """

    factor: int
    best: Callable[[Iterable[float]], float]


# The first pattern that a metric's name matches; of an unknown metric nobody can say what is better.
KINDS = {
    r'(\w+_)?(accuracy|single-label|multi-label|retrieval)/(?!.*support)[^/]+': Kind(1, max),  # of mmpretrain
    r'(.*/)?([^/]*_)?m?(AP|AR)(?![A-Z])[^/]*': Kind(100, max),  # of mmdet
    r'(.*/)?recall@[^/]*': Kind(100, max),
    r'(.*/)?(aAcc|cIoU|m(IoU|Acc|Dice|Fscore|Precision|Recall)|[PSR]Q(_th|_st)?)': Kind(1, max),  # of segmentation
    r'(.*/)?mMR': Kind(100, min),  # the miss rate of CrowdHumanMetric
    r'(.*/)?JI': Kind(100, max),  # its Jaccard index
}


def kind_of(metric: str) -> Kind | None:
    """Return the kind of a metric, None if it is unknown."""
    return next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, metric)), None)


def in_percent(metric: str, value: float) -> float:
    """Return the value in percent; that of an unknown metric as it is."""
    kind = kind_of(metric)
    return round(value * kind.factor, 10) if kind and kind.factor != 1 else value
