"""The part of a model that is exported: tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.export.postprocess import PostProcess
from mmscconv.foreign_errors import explained

# Named like the arguments of mmdet's predict_by_feat.
HEAD_OUTPUTS = ('cls_score', 'bbox_pred', 'score_factor')


@dataclass
class Graph:
    """A network with the names of its inputs and outputs.

    Attributes:
        network: Takes ``image`` (N, 3, H, W), normalized; with post-processing also ``shape``
            (N, 2), height and width of each image without its padding.
        inputs, outputs: Names, each with its dynamic axes.
        divisor: H and W must be multiples of this number.
        coarsest: Stride of the coarsest output of a detector, 1 for a classifier.
    """

    network: nn.Module
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    divisor: int = 1
    coarsest: int = 1

    @property
    def decoded(self) -> bool:
        """True if the outputs are detections, False for tensors of the head."""
        return isinstance(self.network, Detections)


SIDE = 320  # pixels of an image that every detector takes, SSD's, too
IMAGE = {'image': {0: 'batch', 2: 'height', 3: 'width'}}


def is_classifier(model: nn.Module) -> bool:
    """Return whether ``model`` is one of mmpretrain's classifiers; all other models here are detectors."""
    from mmpretrain.models.classifiers import BaseClassifier

    return isinstance(model, BaseClassifier)


def graph_of(model: nn.Module, postprocess: bool) -> Graph:
    """Return the graph to export of ``model``, in eval mode.

    The wrapper is in eval mode, too: torch.onnx restores the wrapper's mode in the whole model.

    Raises:
        UserError: Neither a classifier nor a single-stage detector; a head whose post-processing is not supported.
    """
    graph = _graph_of(model, postprocess)
    graph.network.eval()
    return graph


def _graph_of(model: nn.Module, postprocess: bool) -> Graph:
    from mmdet.models.detectors import SingleStageDetector

    if is_classifier(model):
        return Graph(Logits(model), IMAGE, {'logits': {0: 'batch'}})
    if not isinstance(model, SingleStageDetector):
        raise UserError(
            f'{type(model).__name__} cannot be exported: a classifier or a single-stage detector can (RetinaNet, FCOS)'
        )
    divisor = model.data_preprocessor.pad_size_divisor
    kinds = _kinds(model, divisor)
    strides = model.bbox_head.prior_generator.strides
    settings = dict(divisor=divisor, coarsest=max(map(max, strides)))
    if postprocess:
        network = Detections(model, PostProcess(model.bbox_head, model.test_cfg))
        return Graph(network, {**IMAGE, 'shape': {0: 'batch'}}, PostProcess.OUTPUTS, **settings)
    return Graph(HeadOutputs(model), IMAGE, head_outputs(len(strides), kinds), **settings)


def heads_of(model: nn.Module) -> tuple[str, ...]:
    """Return the kinds of outputs of a detector's head."""
    return HEAD_OUTPUTS[: 3 if hasattr(model.bbox_head, 'loss_centerness') else 2]


def _kinds(model: Any, divisor: int) -> tuple[str, ...]:
    """Return :func:`heads_of` a detector that gives as many kinds of maps, at all levels of its priors.

    Raises:
        UserError: It does not.
    """
    generator = getattr(model.bbox_head, 'prior_generator', None)
    kinds, levels = heads_of(model), len(getattr(generator, 'strides', ()))
    side = -(-SIDE // divisor) * divisor
    weight = next(model.parameters())
    with torch.no_grad(), explained(f'{type(model).__name__} cannot be exported', (RuntimeError, ValueError)):
        found = model(weight.new_zeros(1, 3, side, side), mode='tensor')
    if not levels or len(found) != len(kinds) or any(len(kind) != levels for kind in found):
        raise UserError(
            f'{type(model).__name__} with {type(model.bbox_head).__name__} cannot be exported: its head does not give '
            'scores and boxes, or these and centerness, for each level of its priors, as RetinaNet and FCOS do'
        )
    return kinds


def head_outputs(levels: int, kinds: tuple[str, ...]) -> dict[str, dict[int, str]]:
    """Return each output's name and dynamic axes, in the order of the outputs."""
    names = [(kind, level) for kind in kinds for level in range(levels)]
    return {f'{kind}_{level}': {0: 'batch', 2: f'height_{level}', 3: f'width_{level}'} for kind, level in names}


class Logits(nn.Module):
    """Image (N, 3, H, W) to logits (N, classes) of a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.model(image, mode='tensor'),)


class HeadOutputs(nn.Module):
    """Image (N, 3, H, W) to the head's tensors, kind by kind: one kind at all levels, then the next kind."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(level for kind in self.model(image, mode='tensor') for level in kind)


class Detections(nn.Module):
    """Image (N, 3, H, W) and shape (N, 2) to boxes, scores and labels."""

    def __init__(self, model: nn.Module, postprocess: PostProcess) -> None:
        super().__init__()
        self.model = model
        self.postprocess = postprocess

    def forward(self, image: Tensor, shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.postprocess(*self.model(image, mode='tensor'), shape)
