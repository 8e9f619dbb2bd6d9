"""Comparison of an exported file with PyTorch, on real images of more than one size and batch.

The tolerance is on norms, not on maxima: a logit within rounding of SRU's threshold
may fall on either side of it in two correct programs that sum in different order,
and the outputs then differ there by half an element.
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

# Relative L2 norm of the difference, per output.
TOLERANCE = 5e-3
# Least share of detections with a partner of the same class within these distances (pixels, score).
MATCHED, BOX_DISTANCE, SCORE_DISTANCE = 0.99, 0.5, 5e-3
# Pixels beyond a multiple of 32: maps of 33, 17, 9, 5 and 3 pixels are odd in front of every stride.
ODD = 1

Inputs = tuple[Tensor, ...]
Runs = Callable[..., Sequence[Tensor]]


@dataclass
class Agreement:
    """The result for one batch: ``value`` is the largest relative L2 norm, or the share of matched detections."""

    batch: int
    size: tuple[int, int]
    value: float
    detections: int | None = None

    def __str__(self) -> str:
        what = f'{self.batch} x {self.size[0]} x {self.size[1]}'
        if self.detections == 0:
            return f'{what}: neither finds anything, so nothing was compared (give images with objects)'
        if self.detections is not None:
            return f'{what}: {100 * self.value:.2f} % of {self.detections} detections alike'
        return f'{what}: largest difference {self.value:.1e}'


def batches(
    graph: Graph, images: Tensor, shapes: Tensor, size: tuple[int, int] | None, multiples: bool = True
) -> list[Inputs]:
    """Return two inputs for the comparison: all images as one batch, and the first image at another size.

    Args:
        graph: To compare.
        images, shapes: (N, 3, H, W) and (N, 2).
        size: (H, W) to bring the images to.
        multiples: Whether the file takes multiples of 32 alone. If not, the other size of a classifier is odd: runtimes
            differ in windows that are cut off.
    """
    if size:
        images, shapes = resized(images, size)
    step = max(graph.divisor, 32)
    odd = 0 if multiples or graph.divisor > 1 else ODD
    height, width = (-(-s // step) * step + step * (i + 1) + odd for i, s in enumerate(images.shape[2:]))
    other = resized(images[:1], (height, width))
    return [pair[: len(graph.inputs)] for pair in ((images, shapes), other)]


def check(graph: Graph, exported: Runs, inputs: Sequence[Inputs], what: str) -> list[Agreement]:
    """Run PyTorch and the exported file on every batch.

    Raises:
        UserError: The file refuses a batch, or its result differs by more than the tolerance.
    """
    return [check_batch(graph, exported, batch, what) for batch in inputs]


def check_batch(graph: Graph, exported: Runs, batch: Inputs, what: str) -> Agreement:
    """Run PyTorch and the exported file on one batch, and return how closely they agree.

    Args:
        graph: The exported network in PyTorch.
        exported: Function that runs the exported file.
        batch: Its inputs: images (N, 3, H, W) and, where the graph takes them, shapes (N, 2).
        what: Name of the file, for errors.

    Raises:
        UserError: The file refuses the batch, or its result differs by more than the tolerance.
    """
    n, _, height, width = batch[0].shape
    place = f'{what} is not kept: on {n} x {height} x {width}'
    try:
        got = exported(*batch)
    except Exception as error:  # the types of ONNX Runtime's and torch.export's errors are their own
        raise UserError(f'{place} it fails: {flat_message(error)[:300]}') from error
    with torch.no_grad():
        if graph.decoded:
            matched_share, total = matched(graph.network.model, batch, got)
            if not matched_share >= MATCHED:
                raise UserError(f'{place} only {100 * matched_share:.1f} % of {total} detections are those of mmdet')
            return Agreement(n, (height, width), matched_share, total)
        name, off = _largest(graph, got, batch)
    if not off <= TOLERANCE:  # also for NaN
        raise UserError(f'{place} {name} is {off:.1e} off in relative L2 norm, {TOLERANCE:.0e} is allowed')
    return Agreement(n, (height, width), off)


def largest_difference(graph: Graph, exported: Runs, batch: Inputs) -> tuple[str, float]:
    """Return the name of the output that differs most from PyTorch's, and its relative L2 norm."""
    with torch.no_grad():
        return _largest(graph, exported(*batch), batch)


def _largest(graph: Graph, got: Sequence[Tensor], batch: Inputs) -> tuple[str, float]:
    wanted = graph.network(*batch)
    errors = {name: distance(g, w) for name, g, w in zip(graph.outputs, got, wanted, strict=True)}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float('inf'))
    return worst, errors[worst]


def distance(got: Tensor, wanted: Tensor) -> float:
    """Return the relative L2 norm of the difference; infinite if the shapes differ."""
    if got.shape != wanted.shape:
        return float('inf')
    size, difference = wanted.norm().item(), (got - wanted).norm().item()
    return difference / size if size else difference


def matched(model: Any, batch: Inputs, got: Sequence[Tensor]) -> tuple[float, int]:
    """Return the share of detections, ours and mmdet's together, with a partner, and mmdet's number of detections."""
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
