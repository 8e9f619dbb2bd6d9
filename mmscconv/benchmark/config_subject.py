"""The whole model of a config as a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmscconv.benchmark.candidates import CANDIDATES, Candidate
from mmscconv.benchmark.subjects import Size, Subject
from mmscconv.checks.settings import READ_HERE, known_keys
from mmscconv.configuration import read_config
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained
from mmscconv.layers import SCConv

# Boxes per image of the synthetic ground truth: COCO's mean.
BOXES = 7


class ConfigSubject(Subject):
    """A config's model beside its twin's: output tensors; in training the loss on synthetic ground truth.

    The network alone is measured, without reading and normalizing images and without NMS.

    Args:
        config: Config file with SCConv in its model.
        twin: The same config with plain convolutions.
        overrides: Settings for all configs, as ``--cfg-options`` takes them.
        beside: Further configs, with any layers; each is a candidate, named as its file is.

    Raises:
        UserError: A config is missing or wrong, or has no model, nothing reads one of ``overrides``, or two of
            ``beside`` have one name.
    """

    name = 'config'
    graph_is_whole = False

    def __init__(
        self, config: str, twin: str, overrides: dict[str, Any] | None = None, beside: Sequence[str] = ()
    ) -> None:
        self.title = f'{config} beside {", ".join((twin, *beside))}'
        self.configs = {True: _config(config, overrides), False: _config(twin, overrides)}
        further: dict[str, Candidate] = {}
        for path in beside:
            name = Path(path).stem
            if name in further or name in CANDIDATES:
                raise UserError(f'--beside has two candidates named {name}: rename one of the files')
            network = partial(_model, _config(path, overrides))
            further[name] = Candidate(name, f'the network of {path}', None, network)
        self.further = further

    def network(self, scconv: bool) -> nn.Module:
        model = _model(self.configs[scconv])
        if not scconv and any(isinstance(module, SCConv) for module in model.modules()):
            raise UserError(
                f'{self.configs[False].filename}, the twin, has SCConv: name a config with plain convolutions there, '
                'and networks with any layers behind --beside'
            )
        return model


def _config(path: str, overrides: dict[str, Any] | None) -> Config:
    if overrides:
        _require_read(overrides, read_config(path), path)
    cfg = read_config(path, overrides)
    if 'model' not in cfg:
        raise UserError(f'config has no model: {path}')
    return cfg


def _require_read(overrides: Mapping[str, Any], cfg: Config, path: str) -> None:
    """Raise UserError for an option that would make a new key at the top of the config, which nothing reads."""
    read = {*known_keys(), *READ_HERE, *cfg}
    for key in overrides:
        top = key.partition('.')[0]
        if top not in read:
            raise UserError(
                f'--cfg-options sets {top!r}, which is neither in {path} nor known to mmengine (settings of the model '
                'begin with model., as in model.backbone.depth=18)'
            )


def _model(cfg: Config) -> nn.Module:
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with explained(f'cannot build the model of {cfg.filename}'):
        return WholeModel(MODELS.build(cfg.model), cfg)


class WholeModel(nn.Module):
    """A model of mmdet or mmpretrain as a function of one image tensor.

    Shape:
        (N, 3, H, W) to a nest of tensors in eval mode, to the scalar loss in training.
    """

    def __init__(self, model: BaseModel, cfg: Config) -> None:
        super().__init__()
        self.model = model
        self.classifier = cfg.get('default_scope') == 'mmpretrain'
        self.classes = number_of_classes(cfg.model)
        self._samples: dict[Any, Sequence[Any]] = {}

    def forward(self, x: Tensor) -> Any:
        samples = self.samples(x)
        if not self.training:
            return self.model(x, samples, mode='tensor')
        return self.model.parse_losses(self.model(x, samples, mode='loss'))[0]

    @torch.compiler.disable
    def samples(self, x: Tensor) -> Sequence[Any]:
        """Return synthetic ground truth for a batch like ``x``; the same at every call."""
        batch, _, height, width = map(int, x.shape)  # in a trace, sizes are tensors
        key = batch, height, width, x.device
        if key not in self._samples:
            make = classification_samples if self.classifier else detection_samples
            self._samples[key] = make(batch, (height, width), self.classes, x.device)
        return self._samples[key]


def detection_samples(batch: int, size: Size, classes: int, device: torch.device) -> Sequence[Any]:
    """Return mmdet's samples with random boxes."""
    from mmdet.testing import demo_mm_inputs

    samples = demo_mm_inputs(batch, (3, *size), num_items=[BOXES] * batch, num_classes=classes, device=device)
    samples = samples['data_samples']
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    return samples


def classification_samples(batch: int, size: Size, classes: int, device: torch.device) -> Sequence[Any]:
    """Return mmpretrain's samples with one label each."""
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(i % classes).to(device) for i in range(batch)]


def number_of_classes(model: dict[str, Any]) -> int:
    """Return the least ``num_classes`` anywhere in a model's config; 2 if none is set."""
    found: list[int] = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(v for k, v in node.items() if k == 'num_classes' and isinstance(v, int))
            for value in node.values():
                look(value)
        elif isinstance(node, list | tuple):
            for value in node:
                look(value)

    look(model)
    return min(found, default=2)
