"""Settings of a training on a data set: image size, anchors, batch, lr and schedule, each by a stated rule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from mmscconv.own_data.records import AnnotatedImage, Size

BACKBONES = ('r18', 'r50', 'r101')
SMALL = 'r18'

# The small network starts with images of this length, and takes larger ones until small objects have enough pixels.
SMALL_LENGTH, SMALL_STEP, SMALL_MOST = 320, 64, 640
ENOUGH_PIXELS = 12  # square root of the area of an object at the training size; a tenth may be smaller
LARGE_LENGTH = 1333  # the longest side in mmdet's COCO configs
STRIDE = 32  # of the last stage of the backbone

SMALL_BATCH, LARGE_BATCH = 16, 16  # those of the digits and the COCO config, whose learning rates follow
SMALL_LR, LARGE_LR = 2e-3, 1e-2
CPU_LARGE_BATCH = 4
GIB_PER_IMAGE = 2.5  # of a ResNet-50 at 1333x800, with gradients
FEWEST_BATCHES = 10  # an epoch

SMALL_IMAGES_SEEN, SMALL_EPOCHS = 10_000, (12, 300)
LARGE_IMAGES_SEEN, LARGE_EPOCHS = 60_000, (24, 200)
VALIDATIONS = 10

# RetinaNet's anchors at a stride s have 1, 1.26 and 1.59 times the scale times s pixels.
FIRST_STRIDE, LARGEST_OCTAVE = 8, 2 ** (2 / 3)
SMALL_SCALES, MOST_LEVELS = (1, 2, 3, 4), 5


@dataclass(frozen=True)
class Recipe:
    """Settings of a training.

    Args:
        backbone: One of ``BACKBONES``; r18 is the small network of the demo.
        baseline: Whether its convolutions are plain ones.
        size: Images are resized to fit into this (width, height).
        batch: Images an iteration.
        lr: Learning rate, of AdamW for the small network and of SGD for the others.
        epochs: Passes over the training images.
        val_every: Epochs between two validations.
        iterations: Number of iterations of all epochs.
        warmup: Iterations.
        workers: Processes that load images.
        levels: Levels of the feature pyramid of the small network.
        anchor_scale: Anchors of the small network are this many strides wide.
    """

    backbone: str
    baseline: bool
    size: Size
    batch: int
    lr: float
    epochs: int
    val_every: int
    iterations: int
    warmup: int
    workers: int
    levels: int
    anchor_scale: int

    @property
    def small(self) -> bool:
        """True for the network of the demo."""
        return self.backbone == SMALL

    @property
    def base(self) -> str:
        """Name of the shipped config that the training inherits."""
        network = f'{self.backbone}_{"digits" if self.small else "coco"}'
        return f'retinanet_{"" if self.baseline else "scconv_"}{network}'


def choose_recipe(
    images: Sequence[AnnotatedImage], backbone: str = SMALL, baseline: bool = False, size: Size | None = None
) -> Recipe:
    """Choose the settings for the training ``images`` and for this machine.

    Args:
        images: Those that are trained on: with an object, and large enough.
        backbone: One of ``BACKBONES``.
        baseline: Choose the plain twin of the network.
        size: (width, height) to fit images into; None to choose it from the data.
    """
    small = backbone == SMALL
    size = size or training_size(images, small)
    batch = max(1, min(_largest_batch(small), len(images) // FEWEST_BATCHES or 1))
    batch = max(batch, min(2, len(images)))  # batch norm needs more than one
    seen, (fewest, most) = (SMALL_IMAGES_SEEN, SMALL_EPOCHS) if small else (LARGE_IMAGES_SEEN, LARGE_EPOCHS)
    epochs = min(max(round(seen / len(images)), fewest), most)
    val_every = max(1, epochs // VALIDATIONS)
    epochs = epochs // val_every * val_every
    iterations = epochs * -(-len(images) // batch)
    levels, scale = anchors(object_sizes(images, size))
    return Recipe(
        backbone=backbone,
        baseline=baseline,
        size=size,
        batch=batch,
        # AdamW's follows the square root of the batch, SGD's the batch.
        lr=_rounded(SMALL_LR * (batch / SMALL_BATCH) ** 0.5 if small else LARGE_LR * batch / LARGE_BATCH),
        epochs=epochs,
        val_every=val_every,
        iterations=iterations,
        warmup=max(1, min(50 if small else 500, iterations // 10)),
        workers=max(1, min(4, (os.cpu_count() or 1) // 2)),
        levels=levels,
        anchor_scale=scale,
    )


def training_size(images: Sequence[AnnotatedImage], small: bool) -> Size:
    """Return the (width, height) to fit images into: the shape of the median image, no larger than the data."""
    width, height = (round(median(image.size[side] for image in images)) for side in (0, 1))
    longest = max(width, height)
    length = min(SMALL_LENGTH if small else LARGE_LENGTH, longest)
    while small and length < min(SMALL_MOST, longest):
        scaled = (width * length // longest, height * length // longest)
        if np.quantile(object_sizes(images, scaled), 0.1) >= ENOUGH_PIXELS:
            break
        length = min(length + SMALL_STEP, SMALL_MOST, longest)
    return max(STRIDE, round(width * length / longest)), max(STRIDE, round(height * length / longest))


def object_sizes(images: Sequence[AnnotatedImage], size: Size) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the square roots of the areas of all objects, in pixels, once the images fit into ``size``."""
    roots = [
        # Resize fits the longer side into the longer one, as images may stand upright.
        (box.width * box.height) ** 0.5 * min(max(size) / max(image.size), min(size) / min(image.size))
        for image in images
        for box in image.boxes
    ]
    return np.array(roots or [float(STRIDE)])


def anchors(sizes: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[int, int]:
    """Return (levels, scale) of the small network whose anchors reach from small to large objects of a data set."""
    low, high = np.quantile(sizes, (0.05, 0.95))
    # A smallest anchor that is larger than small objects misses them, as platelets among blood cells.
    scale = max((s for s in SMALL_SCALES if s * FIRST_STRIDE <= low), default=SMALL_SCALES[0])
    levels = 3
    while levels < MOST_LEVELS and FIRST_STRIDE * 2 ** (levels - 1) * scale * LARGEST_OCTAVE < high:
        levels += 1
    return levels, scale


def _largest_batch(small: bool) -> int:
    if small:
        return SMALL_BATCH
    if not torch.cuda.is_available():
        return CPU_LARGE_BATCH
    fitting = torch.cuda.get_device_properties(0).total_memory / 2**30 / GIB_PER_IMAGE
    return max(2, min(LARGE_BATCH, 2 ** int(np.log2(max(fitting, 1)))))


def _rounded(lr: float) -> float:
    return float(f'{lr:.2g}')
