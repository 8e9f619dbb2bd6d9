"""The forms of a subject that are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from mmscconv.benchmark.unofficial import unofficial_like
from mmscconv.layers import CRU, SRU, AlignedAvgPool2d, SCConv
from mmscconv.layers.deploy import DeployedCRU


@dataclass(frozen=True)
class Candidate:
    """A replacement for the convolutions of a network, or a network of its own.

    Args:
        name: Name on the command line and in the tables.
        description: Text for the report.
        edit: Returns the candidate's replacement for an SCConv; None for the
            network with plain convolutions.
        network: Builds the network; None for the subject's own.
    """

    name: str
    description: str
    edit: Callable[[SCConv], nn.Module] | None
    network: Callable[[], nn.Module] | None = None


def _unchanged(layer: SCConv) -> nn.Module:
    return layer


def plain(model: nn.Module) -> nn.Module:
    """Set the layers in ``model`` to their plain form, the definition of correct, and return ``model``."""
    for module in model.modules():
        if isinstance(module, SRU | CRU | DeployedCRU):
            module.backend = 'plain'
        elif isinstance(module, SCConv):
            module.recompute = False
    return model


def _cru_alone(layer: SCConv) -> nn.Module:
    layer.sru, layer.arrangement = None, 'C'
    return layer


def _recomputing(layer: SCConv) -> nn.Module:
    layer.recompute = True
    return layer


def _nothing(layer: SCConv) -> nn.Module:
    if layer.in_channels != layer.out_channels:
        raise ValueError(f'needs as many output channels as input channels, got {layer}')
    return AlignedAvgPool2d(*layer.window)


CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate('conv', 'the network with its plain convolutions', None),
        Candidate('scconv', 'SCConv, the fastest backend that runs', _unchanged),
        Candidate('scconv-plain', "SCConv, backend='plain'", plain),
        Candidate('cru', "CRU alone, arrangement='C', the fastest backend that runs", _cru_alone),
        Candidate('scconv-recompute', 'SCConv with recompute=True', _recomputing),
        Candidate(
            'nothing',
            'no layer at all, but average pooling where the convolution is strided: the bound for a layer that costs '
            'nothing',
            _nothing,
        ),
        Candidate(
            'unofficial',
            'our re-composition of the popular unofficial ScConv module, with AvgPool2d(2) in front where the '
            'convolution is strided: the module has no stride, and this choice costs it least',
            unofficial_like,
        ),
    )
}


def edit_scconvs(model: nn.Module, edit: Callable[[SCConv], nn.Module]) -> int:
    """Replace each SCConv inside ``model`` by the result of ``edit``; return the number of SCConvs."""
    places = [(m, name, c) for m in model.modules() for name, c in m.named_children() if isinstance(c, SCConv)]
    for parent, name, layer in places:
        setattr(parent, name, edit(layer))
    return len(places)


def plain_copy(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with the same weights in its plain form."""
    return plain(copy.deepcopy(model))
