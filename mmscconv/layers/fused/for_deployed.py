"""The CRU's deploy form, and SRU with it as one op."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.layers.fused.for_exports import exported, through_halves
from mmscconv.layers.fused.for_sru import SRUArguments, sru_arguments
from mmscconv.layers.fused.precision import as_fp32, kernels_take
from mmscconv.layers.fused.squeezes import squeezed
from mmscconv.layers.intact import intact, undisturbed

if TYPE_CHECKING:
    from mmscconv.layers.deploy import DeployedCRU
    from mmscconv.layers.sru import SRU


def deployed(layer: DeployedCRU, x: Tensor) -> Tensor | None:
    """The CRU's deploy form with its squeezes as one convolution, and its fuse as one kernel."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain' and ops.exporting():
        return exported(layer, layer.squeeze(x))
    if backend == 'plain' or not x.numel() or not 0 < layer.channels.alpha < 1:
        return None
    x_up, x_low = cast('tuple[Tensor, Tensor]', squeezed(layer, x))
    pwc2_out, low = layer.transform_low(x_low)
    y1, y1_addend = layer.transform_up(x_up)
    overwrite = intact(layer, 'gwc')  # a hook may have kept Y1
    scale, shift = as_fp32(layer.scale), as_fp32(layer.shift)
    y = ops.fuse(y1, low, y1_addend, pwc2_out, scale, shift, overwrite=overwrite, backend=layer.backend)
    return F.relu(y, inplace=True) if layer.relu else y


def sru_then_deployed(layer: DeployedCRU, front_sru: SRU, x: Tensor) -> Tensor | None:
    """``layer(front_sru(x))`` by one op, for inference."""
    if ops.exporting():
        return through_halves(layer, front_sru, x)
    if (
        layer.packed is None
        or not ops.scconv_runs_on(x, layer.backend, layer.packed)
        or not undisturbed(front_sru, layer)
    ):
        return None
    if not intact(front_sru, 'gn') or not intact(layer, 'squeeze_up', 'squeeze_low', 'gwc', 'pwc1', 'pwc2', 'pool'):
        return None
    if front_sru.backend not in (None, 'native') or not kernels_take(x):
        return None
    weights, fingerprint = layer.weights_and_packed_fingerprint()
    return ops.scconv(x, *op_arguments(layer, front_sru, x.dtype), weights=weights, fingerprint=fingerprint)


class OpArguments(NamedTuple):
    """The arguments of :func:`mmscconv.ops.scconv` that follow its input, but for the unpacked weights."""

    sru: SRUArguments
    squeezes: tuple[Any, ...]
    transform: tuple[Any, ...]
    channels: tuple[int, int, int, int, int]
    window: Any
    centre: int | None
    relu: bool


def op_arguments(layer: DeployedCRU, front_sru: SRU, dtype: torch.dtype) -> OpArguments:
    """Return the op's arguments for ``layer(front_sru(x))``, ``x`` of ``dtype``."""
    c, gwc, pwc2 = layer.channels, cast('nn.Conv2d', layer.gwc), cast('nn.Conv2d', layer.pwc2)
    squeezes = cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low)
    return OpArguments(
        sru_arguments(front_sru, dtype),
        (layer.packed_up, layer.packed_low, *(conv.bias for conv in squeezes)),
        (layer.packed, gwc.bias, pwc2.bias, layer.scale, layer.shift),
        (c.up, c.squeezed_up, c.squeezed_low, layer.out_channels, pwc2.out_channels),
        layer.window,
        layer.centre,
        layer.relu,
    )
