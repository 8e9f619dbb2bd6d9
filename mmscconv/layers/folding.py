"""Folding of an eval-mode BN, which is an affine map, into the convolution before it; BN's running statistics."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def affine_of(norm: nn.Module, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C) that a BN applies in eval mode, with gradients, in ``dtype`` or that of the norm.

    Raises:
        ValueError: A norm other than a BN with running statistics.
    """
    bn, mean, variance = _with_statistics(norm)
    mean, variance = mean.to(dtype or mean.dtype), variance.to(dtype or variance.dtype)
    scale = torch.rsqrt(variance + bn.eps) * (1 if bn.weight is None else bn.weight.to(mean.dtype))
    shift = (0 if bn.bias is None else bn.bias.to(mean.dtype)) - mean * scale
    return scale, shift


@overload
def fold_norm(conv: nn.Conv2d, norm: nn.Module | None) -> nn.Conv2d: ...
@overload
def fold_norm(conv: None, norm: nn.Module | None) -> None: ...
def fold_norm(conv: nn.Conv2d | None, norm: nn.Module | None) -> nn.Conv2d | None:
    """Return one convolution for ``conv`` and the BN behind it; ``conv`` itself if there is no norm.

    Raises:
        ValueError: A norm other than a BN with running statistics.
    """
    if conv is None or norm is None:
        return conv
    return fuse_conv_bn_eval(conv, _with_statistics(norm)[0])


def _with_statistics(norm: nn.Module) -> tuple[_BatchNorm, Tensor, Tensor]:
    """Return a BN with its running mean and variance, or raise."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f'only a BN with running statistics can be folded, got {norm}')
    return norm, norm.running_mean, norm.running_var


def is_affine(norm: nn.Module | None) -> bool:
    """Return whether ``norm`` is None, or an affine map in its present mode."""
    if norm is None:
        return True
    known = isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    return known and not norm.training


def folded(weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a convolution with the BN behind it, in eval mode, in the weight's dtype."""
    if norm is None:
        return weight, bias
    scale, shift = affine_of(norm, weight.dtype)
    return weight * scale.view(-1, 1, 1, 1), shift if bias is None else torch.addcmul(shift, bias, scale)


def with_identity(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the 1x1 convolution that maps x to cat(conv(x), x)."""
    channels = weight.shape[1]
    identity = torch.eye(channels, dtype=weight.dtype, device=weight.device).view(channels, channels, 1, 1)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.cat((weight, identity)), torch.cat((bias, bias.new_zeros(channels)))


def update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update the running statistics as a call of ``norm`` in training does.

    Args:
        norm: Unchanged in eval mode, without running statistics, or while it tracks none.
        mean, variance: (C), of the batch; the biased variance.
        count: Number of values per channel.
    """
    if not (norm.training and norm.track_running_stats) or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else momentum
    with torch.no_grad():
        norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
        norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var), momentum)
