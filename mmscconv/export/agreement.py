"""Compares a file with PyTorch on real images of several sizes and batches.

SRU's gate decides, and a logit within rounding of the threshold may fall on either
side, in two correct programs that add in another order: the result then differs by
half an element there. Hence norms and not maxima.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmscconv.errors import UserError
from mmscconv.export.graphs import Graph
from mmscconv.export.image_inputs import resized
from mmscconv.foreign_errors import flat_message

# Relative L2 norm of the difference of each output.
TOLERANCE = 5e-3
# Of detections: the share that has a partner of the same class within these distances.
MATCHED, BOX_DISTANCE, SCORE_DISTANCE = 0.99, 0.5, 5e-3

Inputs = tuple[Tensor, ...]
Runs = Callable[..., Sequence[Tensor]]


@dataclass
class Agreement:
    """The result for one batch: ``value`` is the largest difference, or the share of matched detections."""

    batch: int
    size: tuple[int, int]
    value: float
    detections: int | None = None

    def __str__(self) -> str:
        what = f'{self.batch} x {self.size[0]} x {self.size[1]}'
        if self.detections is not None:
            return f'{what}: {100 * self.value:.2f} % of {self.detections} detections alike'
        return f'{what}: largest difference {self.value:.1e}'


def batches(graph: Graph, images: Tensor, shapes: Tensor, size: tuple[int, int] | None) -> list[Inputs]:
    """Return the inputs to compare on: all images together, and the first alone at another size."""
    if size:
        images, shapes = resized(images, size)
    step = max(graph.divisor, 32)
    height, width = (-(-s // step) * step + step * (i + 1) for i, s in enumerate(images.shape[2:]))
    other = resized(images[:1], (height, width))
    return [pair[: len(graph.inputs)] for pair in ((images, shapes), other)]


def check(graph: Graph, exported: Runs, inputs: Sequence[Inputs], what: str) -> list[Agreement]:
    """Run both on every batch.

    Raises:
        UserError: A batch that the file refuses or on which it differs.
    """
    return [check_batch(graph, exported, batch, what) for batch in inputs]


def check_batch(graph: Graph, exported: Runs, batch: Inputs, what: str) -> Agreement:
    """Run both on one batch; see :func:`check`."""
    n, _, height, width = batch[0].shape
    place = f'{what} is not kept: on {n} x {height} x {width}'
    try:
        got = exported(*batch)
    except Exception as error:  # ONNX Runtime and torch.export raise their own
        raise UserError(f'{place} it fails: {flat_message(error)[:300]}') from error
    with torch.no_grad():
        if graph.decoded:
            share, total = matched(graph.network.model, batch, got)
            if not share >= MATCHED:
                raise UserError(f'{place} only {100 * share:.1f} % of {total} detections are those of mmdet')
            return Agreement(n, (height, width), share, total)
        wanted = graph.network(*batch)
    errors = {name: distance(g, w) for name, g, w in zip(graph.outputs, got, wanted, strict=True)}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float('inf'))
    if not errors[worst] <= TOLERANCE:  # also where it is not a number
        raise UserError(f'{place} {worst} is {errors[worst]:.1e} off in relative L2 norm, {TOLERANCE:.0e} is allowed')
    return Agreement(n, (height, width), errors[worst])


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 norm of the difference; infinite for another shape."""
    if got.shape != wanted.shape:
        return float('inf')
    size, difference = wanted.norm().item(), (got - wanted).norm().item()
    return difference / size if size else difference


def matched(model: Any, batch: Inputs, got: Sequence[Tensor]) -> tuple[float, int]:
    """Return the share of detections with a partner in mmdet's own ``predict``, both ways, and mmdet's number."""
    from mmdet.structures import DetDataSample

    images, shapes = batch
    metas = [dict(img_shape=tuple(map(int, s)), batch_input_shape=tuple(images.shape[2:])) for s in shapes]
    samples = model.predict(images, [DetDataSample(metainfo=m) for m in metas], rescale=False)
    alike = total = number = 0
    for sample, boxes, scores, labels in zip(samples, *got, strict=True):
        theirs, there = sample.pred_instances, labels >= 0
        if len(theirs) and there.any():
            near = (boxes[there].unsqueeze(1) - theirs.bboxes).abs().amax(dim=2) <= BOX_DISTANCE
            near &= (scores[there].unsqueeze(1) - theirs.scores).abs() <= SCORE_DISTANCE
            near &= labels[there].unsqueeze(1) == theirs.labels
            alike += (near.any(dim=0).sum() + near.any(dim=1).sum()).item()
        total += len(theirs) + there.sum().item()
        number += len(theirs)
    return (alike / total if total else 1.0), number
