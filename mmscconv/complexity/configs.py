"""Counts the model of a config, without its data set."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmscconv.checks.files import datasets
from mmscconv.complexity.counting import Complexity, count
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained, flat_message

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
        backbone_alone: Count a detector's backbone alone, as the paper does.

    Raises:
        UserError: No model, one that cannot be built or that refuses the shape,
            ``classes`` for a model without a classification head, or a detector that
            cannot run without its data samples, as those with two stages.
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
    with explained(f'cannot build the model of {cfg.filename}'):
        network: nn.Module = MODELS.build(model.backbone if backbone_alone and not classifier else model)
    shape = shape or cfg.get('input_shape') or (training_crop(cfg) if classifier else DETECTOR_SHAPE)
    try:
        return count(network, shape)
    except (AttributeError, TypeError) as error:
        if classifier or backbone_alone:
            raise
        raise UserError(
            f'{cfg.filename} cannot be counted whole, its {type(network).__name__} needs data samples to run: '
            'pass --backbone to count the backbone alone'
        ) from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{cfg.filename} cannot be run on {shape[0]} x {shape[1]}: {flat_message(error)}') from error


def training_crop(cfg: Config) -> tuple[int, int]:
    """Return the size of the last crop of the training pipeline, or 224 x 224."""
    steps = [step for dataset in datasets(cfg.get('train_dataloader')) for step in dataset.get('pipeline', [])]
    sizes = [
        step.get('crop_size') or step.get('scale') or step.get('size') for step in steps if 'Crop' in str(step['type'])
    ]
    if not sizes or sizes[-1] is None:
        return CLASSIFIER_SHAPE
    return (sizes[-1], sizes[-1]) if isinstance(sizes[-1], int) else tuple(sizes[-1])
