"""Counts the model of a config, without its data set."""

from __future__ import annotations

import copy
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
CLASSIFIER_SHAPE = (224, 224)


def count_config(
    cfg: Config, classes: int | None = None, shape: tuple[int, int] | None = None, backbone_alone: bool = False
) -> Complexity:
    """Count a classifier or a detector.

    Args:
        cfg: Of mmpretrain or mmdet.
        classes: Number of classes of a classifier's head, in place of the config's.
        shape: (H, W); None for the config's ``input_shape`` or, if it has none, a classifier's training crop or
            768 x 1024 for a detector.
        backbone_alone: Count a detector's backbone alone, as the paper does; the whole detector is built, whose type
            may change the backbone, as ``ReplaceConv`` does.

    Raises:
        UserError: No model, one that cannot be built or that refuses the shape,
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
    shape = shape or cfg.get('input_shape') or (training_crop(cfg) if classifier else DETECTOR_SHAPE)
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


def training_crop(cfg: Config) -> tuple[int, int]:
    """Return the size of the last crop of the training pipeline, or 224 x 224."""
    steps = [step for dataset in datasets(cfg.get('train_dataloader')) for step in dataset.get('pipeline', [])]
    crops = [step for step in steps if 'Crop' in str(step['type'])]
    return (_size(crops[-1]) if crops else None) or CLASSIFIER_SHAPE


def _size(crop: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (H, W) that a step crops to; None if its size is not in pixels."""
    # The `scale` of torchvision's crops is a range of areas.
    keys = ('size',) if str(crop['type']).startswith('torchvision/') else ('crop_size', 'scale', 'size')
    for size in (crop.get(key) for key in keys):
        sides: Sequence[Any] = size if isinstance(size, Sequence) else [size]
        if len(sides) in (1, 2) and all(isinstance(side, int) for side in sides):
            return sides[0], sides[-1]
    return None
