"""The CRU, or its deploy form, in few operators, for exported graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv import identities, ops
from mmscconv.layers.fused.replacing import Halves
from mmscconv.layers.fused.squeezes import Branches
from mmscconv.layers.intact import undisturbed

if TYPE_CHECKING:
    from mmscconv.layers.cru import ChannelUnit
    from mmscconv.layers.sru import SRU


def cru_of_halves(layer: ChannelUnit, halves: Halves) -> Tensor:
    """CRU, or its deploy form, of SRU's output in halves, for exported graphs."""
    y = exported(layer, layer.squeeze_halves(*halves))
    assert y is not None  # both branches are there
    return y


def exported(layer: ChannelUnit, branches: Branches) -> Tensor | None:
    """Return the output of the squeezed branches in few operators, for exported graphs; None without both branches."""
    x_up, x_low = layer.normed(*branches)
    if x_up is None or x_low is None:
        return None
    y1, y1_addend = layer.transform_up(x_up)
    pwc2_out, x_low = layer.transform_low(x_low)
    y = identities.fuse(y1, x_low, y1_addend, pwc2_out, getattr(layer, 'scale', None), getattr(layer, 'shift', None))
    return F.relu(y) if getattr(layer, 'relu', False) else y


def through_halves(layer: ChannelUnit, front_sru: SRU, x: Tensor) -> Tensor | None:
    """``layer(front_sru(x))`` of an exported graph, X^w handed over in halves if the CRU splits it there, else None."""
    c = layer.channels
    if not ops.exporting() or not undisturbed(front_sru, layer, front_sru.gn) or c.up != c.low:
        return None
    front_sru.check(x)
    return cast('Tensor', layer(front_sru(x, in_halves=True), in_halves=True))
