"""Parameters and multiply-adds of a detector's parts, and its time for an image on this machine."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dataset import pseudo_collate

from mmscconv.complexity import Complexity, count, detector_parts

WARM_UP, RUNS, PATIENCE = 2, 20, 15.0  # images, images, seconds


def parts(model: Any, data_set: Any) -> tuple[dict[str, Complexity], tuple[int, int]]:
    """Return the counts of backbone, neck, heads and all of it, and the (H, W) for which they hold: the first image's.

    Raises:
        Exception: Raised by detectors that need data samples to run, as those with two stages.
    """
    model = copy.deepcopy(model).cpu()
    inputs = model.data_preprocessor(pseudo_collate([data_set[0]]), False)['inputs']
    shape = (int(inputs.shape[-2]), int(inputs.shape[-1]))
    whole = count(model, shape)
    return {**detector_parts(whole), 'all': whole}, shape


@dataclass(frozen=True)
class Timing:
    """Milliseconds for an image that is loaded, with NMS: median and quartiles, and the number of images."""

    median: float
    low: float
    high: float
    images: int


def time_images(model: Any, data_set: Any) -> Timing:
    """Time ``model`` on single images of ``data_set``, as it is: no deploy form, no compilation."""
    model.eval()
    begin = time.perf_counter()
    measured: list[float] = []
    with torch.no_grad():
        for i in range(WARM_UP + RUNS):
            batch = pseudo_collate([data_set[i % len(data_set)]])
            _synchronize()
            start = time.perf_counter()
            model.test_step(batch)
            _synchronize()
            measured.append(1000 * (time.perf_counter() - start))
            if i > WARM_UP + 1 and time.perf_counter() - begin > PATIENCE:
                break
    measured = measured[WARM_UP:]
    low, median, high = statistics.quantiles(measured, n=4, method='inclusive')
    return Timing(median, low, high, len(measured))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
