"""A CRU from the squeezed branches to its output, Y."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import identities, ops
from mmscconv.layers.folding import folded, is_affine, update_statistics, with_identity
from mmscconv.layers.fused.precision import as_fp32, kernels_take
from mmscconv.layers.fused.squeezes import Branches
from mmscconv.layers.intact import intact
from mmscconv.layers.recompute import same_random_numbers, statistics_kept

if TYPE_CHECKING:
    from mmscconv.layers.cru import CRU

# Channels of X_up up to which GWC and PWC1 are one dense convolution on a CPU: oneDNN's grouped ones take longer there,
# in ResNet-20's first stage seven times as long.
NARROW = 8


def transformed(layer: CRU, branches: Branches, backend: str) -> Tensor:
    """Return Y of the squeezed and normed branches."""
    x_up, x_low = branches
    if x_up is None or x_low is None:
        return layer.fuse(*layer.transform(x_up, x_low))
    if backend == 'native':
        if _one_kernel_transforms(layer, x_up, x_low):
            return _transformed_by_kernel(layer, x_up, x_low)
        if _one_kernel_norms(layer, x_up, x_low):
            return _normed_by_kernel(layer, x_up, x_low)
    pwc2_out, low = layer.transform_low(x_low)
    again = None
    if layer.output_is_kept and torch.is_grad_enabled():
        again = functools.partial(_transform_up_again(layer, x_up.device), x_up)
    y1, y1_addend = _transform_up(layer, x_up)
    # Modules in the place of the convolutions may give what the backend of the input does not take.
    return ops.fuse(
        y1, low, y1_addend, pwc2_out, output_is_kept=layer.output_is_kept, again=again, backend=layer.backend
    )


def _transform_up_again(layer: CRU, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return :func:`_transform_up` without updates of running statistics, and with the random numbers of now."""
    # Only other modules than the CRU's own are random.
    known = intact(layer, 'gwc', 'pwc1', 'pool', 'norm1') or ops.becoming_graph() or ops.transformed()
    as_now = nullcontext if known else same_random_numbers(device)

    def again(x_up: Tensor) -> tuple[Tensor, Tensor | None]:
        with statistics_kept(layer), as_now():
            return _transform_up(layer, x_up)

    return again


def _transform_up(layer: CRU, x_up: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return ``layer.transform_up(x_up)``, GWC and PWC1 of few channels as one convolution."""
    y1 = _y1_at_once(layer, x_up)
    if y1 is None:
        return layer.transform_up(x_up)
    return (y1 if layer.norm1 is None else layer.norm1(y1)), None


def _y1_at_once(layer: CRU, x_up: Tensor) -> Tensor | None:
    """Return Y1 before its norm by one dense convolution, or None where that is slower or not the same."""
    gwc, pwc1, window = layer.gwc, layer.pwc1, layer.gwc_window
    if gwc is None or pwc1 is None or window is None or window.centre is None or not layer.pool.is_identity:
        return None
    if x_up.device.type != 'cpu' or x_up.shape[1] > NARROW or not intact(layer, 'gwc', 'pwc1', 'pool'):
        return None
    weight = identities.y1_weight(gwc.weight, pwc1.weight, window.groups, window.centre)
    return F.conv2d(x_up, weight, None, gwc.stride, gwc.padding, gwc.dilation)


def _one_kernel_transforms(layer: CRU, x_up: Tensor, x_low: Tensor) -> bool:
    """Return whether one kernel can do GWC, PWC1, PWC2, norms in eval mode and fuse."""
    gwc, pwc1, pwc2 = layer.gwc, layer.pwc1, layer.pwc2
    if gwc is None or pwc1 is None or pwc2 is None or layer.gwc_window is None:
        return False
    if not intact(layer, 'gwc', 'pwc1', 'pwc2', 'pool', 'norm1', 'norm2'):
        return False
    if not is_affine(layer.norm1) or not is_affine(layer.norm2):
        return False
    return x_up.dtype is x_low.dtype and kernels_take(x_up, gwc.weight, pwc1.weight, pwc2.weight) and ops.fits(x_low)


def _transformed_by_kernel(layer: CRU, x_up: Tensor, x_low: Tensor) -> Tensor:
    window = cast('ops.Window', layer.gwc_window)
    pwc2_conv = cast('nn.Conv2d', layer.pwc2)
    up = None if layer.pool.is_identity and window.centre is not None else layer.pool(x_up)
    gwc, bias1 = folded(cast('nn.Conv2d', layer.gwc).weight.float(), None, layer.norm1)
    # The norm shifts the sum of GWC and PWC1 once.
    pwc1 = folded(cast('nn.Conv2d', layer.pwc1).weight.float(), None, layer.norm1)[0]
    pwc2, bias2 = pwc2_conv.weight.float(), as_fp32(pwc2_conv.bias)
    if layer.norm2 is not None:
        # The norm also changes the X_low part of Y2: PWC2 has to compute all of Y2.
        pwc2, bias2 = folded(*with_identity(pwc2, bias2), layer.norm2)
    return ops.transform_fuse(x_up, up, x_low, (gwc, pwc1, pwc2), window, (bias1, bias2))


def _one_kernel_norms(layer: CRU, x_up: Tensor, x_low: Tensor) -> bool:
    """Return whether one kernel can do ``norm1`` and ``norm2`` with the batch's statistics, and fuse."""
    if layer.pwc2 is None or not intact(layer, 'norm1', 'norm2', 'pwc2'):
        return False
    norms = [norm for norm in (layer.norm1, layer.norm2) if type(norm) is nn.BatchNorm2d and norm.weight is not None]
    if len(norms) < 2 or any(map(is_affine, norms)):
        return False
    affine = [t for norm in norms for t in (norm.weight, norm.bias)]
    if x_up.dtype is not x_low.dtype or not kernels_take(x_up, layer.pwc2.weight):
        return False
    # BN raises for a single value per channel; leave the error to it.
    return kernels_take(x_low, *affine, norms=True) and x_low[:, 0].numel() > 1


def _normed_by_kernel(layer: CRU, x_up: Tensor, x_low: Tensor) -> Tensor:
    norms = cast('nn.BatchNorm2d', layer.norm1), cast('nn.BatchNorm2d', layer.norm2)
    pwc1, gwc, pwc2 = (cast('nn.Conv2d', conv) for conv in (layer.pwc1, layer.gwc, layer.pwc2))
    y1 = _y1_at_once(layer, x_up)
    if y1 is None:
        pwc1_out = pwc1(layer.pool(x_up))  # the pool first, as in transform_up
        y1 = gwc(x_up) + pwc1_out
    if y1.dtype is not x_low.dtype:  # modules in the place of the convolutions may convert
        return layer.fuse(norms[0](y1), layer.transform_low(x_low)[1])
    settings = ((norm.weight.float(), norm.bias.float(), norm.eps) for norm in norms)
    y, mean, variance = ops.norm_fuse(y1, pwc2(x_low), x_low, *settings)
    for norm, mu, v in zip(norms, mean, variance, strict=True):
        update_statistics(norm, mu, v, y[:, 0].numel())
    return y
