"""Counts the model of a config, without its data set."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmscconv.checks.files import datasets
from mmscconv.complexity.counting import Complexity, count
from mmscconv.errors import UserError
from mmscconv.foreign_errors import REFUSALS, explained, flat_message

# The paper names no image size for its detectors; of the plausible ones this explains Tables 4 and 5 best.
DETECTOR_SHAPE = (768, 1024)

# Parts of the names of steps after which an image has another size.
SIZE_STEPS = re.compile('Crop|Resize|Pad')


def count_config(
    cfg: Config, classes: int | None = None, shape: tuple[int, int] | None = None, backbone_alone: bool = False
) -> Complexity:
    """Count a classifier or a detector.

    Args:
        cfg: Of mmpretrain or mmdet.
        classes: Number of classes of a classifier's head, in place of the config's.
        shape: (H, W); None for :func:`counted_shape`.
        backbone_alone: Count a detector's backbone alone, as the paper does; the whole detector is built, whose type
            may change the backbone, as ``ReplaceConv`` does.

    Raises:
        UserError: No model, one that cannot be built or that refuses the shape, a classifier of unknown size,
            ``classes`` for a model without a classification head, a detector that
            cannot run without its data samples, as those with two stages and DETR's kin,
            or a layer whose work cannot be counted.
    """
    model = cfg.get('model')
    if not model or 'backbone' not in model:
        raise UserError(f'config has no model with a backbone: {cfg.filename}')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    classifier = 'head' in model
    if classes is not None:
        if not classifier:
            raise UserError(f'--classes needs a classifier: {cfg.filename}')
        model = model.copy()
        model.head = {**model.head, 'num_classes': classes}
    with explained(f'cannot build the model of {cfg.filename}', (*REFUSALS, OSError)):
        network: Any = MODELS.build(copy.deepcopy(model))  # DETR's head writes tensors into its settings
        if backbone_alone and not classifier:
            network = network.backbone
    shape = shape or counted_shape(cfg)
    try:
        return count(network, shape)
    except UserError as error:
        raise UserError(f'{cfg.filename} {error}') from error
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        if not (classifier or backbone_alone):
            raise UserError(
                f'{cfg.filename} cannot be counted whole, its {type(network).__name__} needs data samples to run: '
                'pass --backbone to count the backbone alone'
            ) from error
        if not isinstance(error, AssertionError):
            raise
        raise _unfit(cfg, shape, error) from error
    except (RuntimeError, ValueError) as error:
        raise _unfit(cfg, shape, error) from error


def _unfit(cfg: Config, shape: tuple[int, int], error: Exception) -> UserError:
    message = flat_message(error) or type(error).__name__
    return UserError(f'{cfg.filename} cannot be run on {shape[0]} x {shape[1]}: {message}')


def counted_shape(cfg: Config) -> tuple[int, int]:
    """Return the (H, W) at which a config is counted.

    This is the config's ``input_shape`` or, if it has none, 768 x 1024 for a detector, and for a classifier the size to
    which its test pipeline, or its validation or training pipeline, brings every image.

    Raises:
        UserError: No pipeline of a classifier brings all images to one size.
    """
    if cfg.get('input_shape'):
        height, width = cfg.input_shape
        return height, width
    if 'head' not in (cfg.get('model') or {}):
        return DETECTOR_SHAPE
    for stage in ('test', 'val', 'train'):
        size = _pipeline_size(cfg, stage)
        if size is not None:
            return size
    raise UserError(
        f'{cfg.filename} sets no size in pixels for all images (by a crop, or Resize with two sides): '
        'set input_shape or pass --shape'
    )


def _pipeline_size(cfg: Config, stage: str) -> tuple[int, int] | None:
    """Return the (H, W) that the last step that changes sizes gives; None if there is none, or it gives several."""
    steps = [step for dataset in datasets(cfg.get(f'{stage}_dataloader')) for step in dataset.get('pipeline') or ()]
    last = next((step for step in reversed(steps) if SIZE_STEPS.search(str(step))), None)
    return None if last is None else _size(last)


def _size(step: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (H, W) that a step gives every image; None if it depends on the image."""
    kind = getattr(step['type'], '__name__', str(step['type']))
    name = kind.rpartition('.')[2]
    if kind.startswith('torchvision/'):
        size = step.get('size')  # its scale is a range of areas
        return _sides(size) if 'Crop' in name or _two(size) else None
    if name in ('Resize', 'Pad', 'CenterCrop'):  # mmcv's own, (w, h)
        key = dict(Resize='scale', Pad='size', CenterCrop='crop_size')[name]
        sides = None if step.get('keep_ratio') else _sides(step.get(key))
        return sides and (sides[1], sides[0])
    if 'Crop' not in name:  # ResizeEdge sets one side, RandomResize any, RandomApply's steps may not run
        return None
    return next(filter(None, (_sides(step.get(key)) for key in ('crop_size', 'scale', 'size'))), None)


def _two(size: Any) -> bool:
    return isinstance(size, Sequence) and len(size) == 2


def _sides(size: Any) -> tuple[int, int] | None:
    """Return one or two sides in pixels as two; None for shares and all else."""
    sides: Sequence[Any] = size if isinstance(size, Sequence) else [size]
    return (sides[0], sides[-1]) if len(sides) in (1, 2) and all(isinstance(side, int) for side in sides) else None
