"""Static INT8 quantization of a classifier's ONNX file, and its cost in accuracy."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.export.image_inputs import Item, preprocess
from mmscconv.export.writing import open_onnx

# Scopes of quantization, the default first; docs/export.md compares their accuracy and speed.
SCOPES = {
    'gate-fp32': 'every op that ONNX Runtime can quantize, except in the SRUs',
    'all': 'every op that ONNX Runtime can quantize',
    'conv': 'convolutions and the classifier alone',
}
# Part of the name of every ONNX node of an SRU.
SRU = '/sru/'
BATCH = 50
ROUNDS = 10


@dataclass
class Comparison:
    """fp32 beside INT8 on the same images, in percent, bytes and milliseconds.

    Top-1 is None unless every image has exactly one label.
    """

    images: int
    calibrated_on: int
    top1: tuple[float, float] | None
    agreement: float
    logit_difference: float
    logit_size: float
    bytes: tuple[int, int]
    milliseconds: tuple[float, float]

    def __str__(self) -> str:
        lines = [f'calibrated on {self.calibrated_on} images, compared on {self.images} others']
        if self.top1:
            lines.append('top-1: fp32 {:.2f} %, INT8 {:.2f} %'.format(*self.top1))
        else:
            lines.append('top-1 is left out: not every image has exactly one label')
        lines += [
            f'same class: {self.agreement:.2f} %',
            f'mean |difference of logits|: {self.logit_difference:.4f} (mean |logit| {self.logit_size:.4f})',
            'size: fp32 {:.2f} MB, INT8 {:.2f} MB'.format(*(size / 1e6 for size in self.bytes)),
            'a batch of one: fp32 {:.2f} ms, INT8 {:.2f} ms (medians of {rounds}, in turns)'.format(
                *self.milliseconds, rounds=ROUNDS
            ),
        ]
        return '\n'.join(lines)


def split(items: Sequence[Item], calibration: int) -> tuple[list[Item], list[Item]]:
    """Return the images to calibrate on, evenly spaced among ``items``, and the others.

    Raises:
        UserError: No image left to compare on.
    """
    if len(items) <= calibration:
        raise UserError(
            f'--int8 needs more images than the {calibration} to calibrate on, got {len(items)} '
            '(give more, or lower --calibration)'
        )
    chosen = set(np.linspace(0, len(items) - 1, calibration).astype(int).tolist())
    return [items[i] for i in sorted(chosen)], [item for i, item in enumerate(items) if i not in chosen]


def quantize(source: Path, target: Path, model: nn.Module, items: Sequence[Item], scope: str) -> None:
    """Write the INT8 form (QDQ, weights by channel) of ``source``, calibrated on ``items``."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ({'image': x.numpy()} for x, _ in batches(model, items))

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / 'prepared.onnx'
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        gate = [node.name for node in onnx.load(prepared).graph.node if SRU in node.name]
        quantize_static(
            prepared, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=['Conv', 'Gemm'] if scope == 'conv' else None,
            nodes_to_exclude=gate if scope == 'gate-fp32' else None,
        )  # fmt: skip


def compare(fp32: Path, int8: Path, model: nn.Module, items: Sequence[Item], calibrated_on: int) -> Comparison:
    """Run both files on ``items``."""
    runs = [open_onnx(file) for file in (fp32, int8)]
    logits: list[list[Tensor]] = [[], []]
    labels: list[Tensor | None] = []
    for images, truth in batches(model, items):
        labels.append(truth)
        for run, found in zip(runs, logits, strict=True):
            found.append(run(images)[0])
    plain, quantized = map(torch.cat, logits)
    classes = [t.argmax(dim=1) for t in (plain, quantized)]
    known = [truth for truth in labels if truth is not None]
    top1 = None
    if len(known) == len(labels):
        top1 = percent(classes[0] == torch.cat(known)), percent(classes[1] == torch.cat(known))
    fp32_time, int8_time = in_turns(runs, images[:1])
    return Comparison(
        images=len(items),
        calibrated_on=calibrated_on,
        top1=top1,
        agreement=percent(classes[0] == classes[1]),
        logit_difference=(plain - quantized).abs().mean().item(),
        logit_size=plain.abs().mean().item(),
        bytes=(fp32.stat().st_size, int8.stat().st_size),
        milliseconds=(fp32_time, int8_time),
    )


def batches(model: nn.Module, items: Sequence[Item]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield preprocessed images (N, 3, H, W) and their labels (N), None unless each has exactly one."""
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        labels = [item['data_samples'].get('gt_label') for item in part]
        alone = all(label is not None and label.numel() == 1 for label in labels)
        truth = torch.cat([label.flatten().cpu() for label in labels]) if alone else None
        yield preprocess(model, part)[0], truth


def in_turns(runs: Sequence[Callable[..., Any]], images: Tensor) -> tuple[float, ...]:
    """Return the median milliseconds of each function; they run in turns, after a warm-up call each."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS + 1):
        for run, found in zip(runs, times, strict=True):
            start = time.perf_counter()
            run(images)
            found.append(1e3 * (time.perf_counter() - start))
    return tuple(statistics.median(found[1:]) for found in times)


def percent(right: Tensor) -> float:
    """Return the percentage of true elements."""
    return 100 * right.float().mean().item()
