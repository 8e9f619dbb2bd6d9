"""The squeezes of a CRU and their norms, with the SRU in front of them or alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.folding import folded, is_affine, update_statistics
from mmscconv.layers.fused.for_sru import sru_arguments
from mmscconv.layers.fused.precision import as_fp32, kernels_take
from mmscconv.layers.intact import intact

if TYPE_CHECKING:
    from mmscconv.layers.cru import CRU, ChannelUnit
    from mmscconv.layers.sru import SRU

Branches = tuple[Tensor | None, Tensor | None]
# Channels of a vector. PyTorch's batch norm is slow on maps whose channels do not fill vectors.
VECTOR = 16


def squeezed(layer: ChannelUnit, x: Tensor) -> Branches:
    """Return the squeezed branches before their norms, by one grouped convolution if both squeezes are alike."""
    if not layer.squeezes_alike or not intact(layer, 'squeeze_up', 'squeeze_low', 'pool'):
        return layer.squeeze(x)
    return side_by_side(cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low), x)


def side_by_side(up: nn.Conv2d, low: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``up`` of the first and ``low`` of the second half of ``x`` by one convolution in two groups."""
    bias = None if up.bias is None or low.bias is None else torch.cat((up.bias, low.bias))
    y = F.conv2d(x, torch.cat((up.weight, low.weight)), bias, groups=2)
    x_up, x_low = ops.split_channels(y, (len(up.weight), len(low.weight)))
    return x_up, x_low


def normed(layer: CRU, branches: Branches, backend: str) -> Branches:
    """Return ``layer.normed(*branches)``; norms of few channels with the batch's statistics by a kernel each."""
    if backend != 'native' or not intact(layer, 'norm_up', 'norm_low'):
        return layer.normed(*branches)
    return _normed_branches(layer, branches)


def _normed_branches(layer: CRU, branches: Branches) -> Branches:
    x_up, x_low = branches
    return _normed_branch(layer.norm_up, x_up), _normed_branch(layer.norm_low, x_low)


def _normed_branch(norm: nn.Module | None, x: Tensor | None) -> Tensor | None:
    if norm is None or x is None:
        return x
    if type(norm) is not nn.BatchNorm2d or norm.weight is None or is_affine(norm):
        return cast('Tensor', norm(x))
    channels, count = x.shape[1], x.numel() // x.shape[1]
    # BN raises for a single value per channel; leave the error to it.
    if (
        (channels > VECTOR and channels % VECTOR == 0)
        or count == 1
        or not kernels_take(x, norm.weight, norm.bias, norms=True)
    ):
        return cast('Tensor', norm(x))
    y, mean, variance = ops.batch_norm(x, norm.weight.float(), norm.bias.float(), norm.eps)
    update_statistics(norm, mean, variance, count)
    return y


def one_kernel_squeezes(layer: CRU, front_sru: SRU, x: Tensor, backend: str) -> bool:
    up, low = layer.squeeze_up, layer.squeeze_low
    if {backend, front_sru.backend or backend} != {'native'} or up is None or low is None:
        return False
    return kernels_take(x, up.weight, low.weight)


def squeezed_by_kernel(layer: CRU, front_sru: SRU, x: Tensor) -> Branches:
    """Return the squeezed and normed branches of ``front_sru(x)``; norms in eval mode are folded into the squeezes."""
    squeeze_up, squeeze_low = cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low)
    up, low = ((conv.weight.float(), as_fp32(conv.bias)) for conv in (squeeze_up, squeeze_low))
    norms_intact = intact(layer, 'norm_up', 'norm_low')
    if norms_intact and is_affine(layer.norm_up) and is_affine(layer.norm_low):
        up, low = folded(*up, layer.norm_up), folded(*low, layer.norm_low)
        return squeeze_reconstructed(x, front_sru, up, low, layer.pool)
    branches = squeeze_reconstructed(x, front_sru, up, low, layer.pool)
    return _normed_branches(layer, branches) if norms_intact else layer.normed(*branches)


def squeeze_reconstructed(
    x: Tensor,
    front_sru: SRU,
    up: tuple[Tensor, Tensor | None],
    low: tuple[Tensor, Tensor | None],
    pool: AlignedAvgPool2d,
) -> tuple[Tensor, Tensor]:
    """Return X_up and the pooled X_low of ``front_sru(x)`` by one kernel.

    Args:
        x: (N, C, H, W).
        front_sru: The SRU.
        up, low: Weight and bias of the squeezes, in fp32.
        pool: Pool of X_low; the kernel does a plain pool, unless gradients are recorded.
    """
    size = (1, 1) if torch.is_grad_enabled() or not pool.is_plain else pool.stride
    # A plain pool does not change a constant bias; other pools have empty windows, which give 0.
    kernel_bias = low[1] if pool.is_plain else None
    x_up, x_low = ops.sru_squeeze(x, sru_arguments(front_sru, x.dtype), up[0], low[0], (up[1], kernel_bias), size)
    if size != pool.stride or not pool.is_plain:
        x_low = pool(x_low)
    return x_up, x_low if low[1] is None or kernel_bias is not None else x_low + low[1].to(x_low.dtype).view(-1, 1, 1)
