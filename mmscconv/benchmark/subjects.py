"""Subjects of measurement: one layer, a backbone, or a config's model; with random weights and input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmscconv.benchmark.candidates import CANDIDATES, Candidate, edit_scconvs
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained
from mmscconv.layers import SCConv

Size = tuple[int, int]
# Factor on the last norm's scale of each residual block. With factors of 1 a random network amplifies the last bit
# of a gate's logit to a tenth of the output, and comparisons are meaningless; training starts at 0 for that reason.
RESIDUAL_SHARE = 0.05
SEED = 0


class Subject(ABC):
    """Builds the network with plain convolutions or with SCConv, and its input.

    Attributes:
        name: Name on the command line, and stem of the written files.
        title: Heading of the report.
        input_requires_grad: True if a training step also computes the input's gradient.
        graph_is_whole: True if torch.compile must capture the network in one graph.
        settling_size: (H, W) of the input from which BN's statistics are taken.
        further: Candidates that this subject alone has, by name.
    """

    name: str
    title: str
    further: Mapping[str, Candidate] = MappingProxyType({})
    input_requires_grad = False
    graph_is_whole = True
    settling_size: Size = (128, 128)

    def candidate(self, name: str) -> Candidate:
        """Return the candidate of a name on the command line."""
        return self.further.get(name) or CANDIDATES[name]

    @abstractmethod
    def network(self, scconv: bool) -> nn.Module:
        """Return a new network, with SCConv or with plain convolutions."""

    def input(self, batch: int, size: Size, device: torch.device) -> Tensor:
        """Return (batch, C, H, W), fp32."""
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(SEED)).to(device)

    def build(self, candidate: Candidate, device: torch.device) -> nn.Module:
        """Return the candidate's network; weights come from the same seed for all candidates."""
        torch.manual_seed(SEED)
        model = (candidate.network or partial(self.network, candidate.edit is not None))().to(device)
        if candidate.edit is not None:
            with explained(f'candidate {candidate.name}'):
                if not edit_scconvs(model, candidate.edit):
                    raise UserError(f'{self.title} has no SCConv')
            model.to(device)
        randomize_norms(model)
        self.settle(model, device)
        return model

    @torch.no_grad()
    def settle(self, model: nn.Module, device: torch.device) -> None:
        """Take BN's running statistics from one batch: with a new BN's statistics, activations exceed fp16's range."""
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()
        model(self.input(2, self.settling_size, device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class LayerSubject(Subject):
    """``nn.Conv2d`` 3x3 beside SCConv, C channels in and out.

    Args:
        channels: C.
        stride: 1 or 2.
        norm: Append a BN, as networks do; the deploy form folds it.
        settings: Arguments of SCConv.
    """

    name = 'layer'
    input_requires_grad = True
    settling_size = (14, 14)

    def __init__(self, channels: int, stride: int, norm: bool, settings: dict[str, Any]) -> None:
        self.channels, self.stride, self.norm, self.settings = channels, stride, norm, settings
        behind = ' and BN' if norm else ''
        self.title = f'3x3 convolution{behind}, {channels} channels, stride {stride}{_written(settings)}'

    def network(self, scconv: bool) -> nn.Module:
        arguments = (self.channels, self.channels, 3, self.stride, 1)
        with explained(self.title):
            layer = SCConv(*arguments, **self.settings) if scconv else nn.Conv2d(*arguments, bias=False)
        if not self.norm:
            return nn.Sequential(layer)
        if isinstance(layer, SCConv):
            layer.mark_output_kept()  # by the norm
        return nn.Sequential(layer, nn.BatchNorm2d(self.channels))

    def input(self, batch: int, size: Size, device: torch.device) -> Tensor:
        # Behind a ReLU, as in networks.
        generator = torch.Generator().manual_seed(SEED)
        return torch.randn(batch, self.channels, *size, generator=generator).relu().to(device)


class BackboneSubject(Subject):
    """mmdet's ResNet beside SCConvResNet; both return four feature maps.

    Args:
        depth: 18, 34, 50, 101 or 152.
        settings: Arguments of SCConv.
        options: Arguments of both backbones, such as ``base_channels``.
    """

    name = 'backbone'

    def __init__(self, depth: int, settings: dict[str, Any], **options: Any) -> None:
        self.depth, self.settings, self.options = depth, settings, options
        self.title = f'ResNet-{depth}, the backbone{_written(settings)}'

    def network(self, scconv: bool) -> nn.Module:
        from mmdet.models.backbones import ResNet

        from mmscconv.models import SCConvResNet

        options = dict(depth=self.depth, frozen_stages=-1, norm_eval=False, **self.options)
        with explained(self.title):
            return SCConvResNet(scconv=self.settings, **options) if scconv else ResNet(**options)


@torch.no_grad()
def randomize_norms(model: nn.Module) -> None:
    """Give the norms scales and shifts other than 1 and 0, so that a forgotten norm changes the results."""
    generator = torch.Generator().manual_seed(SEED)

    def fill(parameter: Tensor | None, low: float, high: float) -> None:
        if parameter is not None:
            parameter.copy_(torch.empty(parameter.shape).uniform_(low, high, generator=generator))

    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.GroupNorm):
            fill(module.weight, 0.5, 1.5)
            fill(module.bias, -0.2, 0.2)
    for module in model.modules():
        # OpenMMLab's blocks end in norm3 (Bottleneck) or norm2 (BasicBlock).
        last = next((n for n in ('norm3_name', 'norm2_name') if hasattr(module, n)), None)
        norm = getattr(module, getattr(module, last)) if last else None
        if isinstance(norm, _BatchNorm):
            norm.weight.mul_(RESIDUAL_SHARE)


def _written(settings: dict[str, Any]) -> str:
    return f'; SCConv({", ".join(f"{k}={v!r}" for k, v in settings.items())})' if settings else ''
