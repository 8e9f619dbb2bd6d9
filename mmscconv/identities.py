"""Rearranged forms of :mod:`mmscconv.equations`, equal up to rounding, for graphs and kernels.

* GN and Eq. 2's weights are both affine per channel, so one scale and one shift
  do both: W_gamma * GN(X) = (W_gamma * gamma) * (X - mu) / sigma + W_gamma * beta.
  Kernels take these two vectors, and exporters see one group norm.
* With K = (W > t) * X and L = W * (X - K), the soft gate's X1 = K + L and X2 = L:
  ONNX Runtime takes several times longer over a choice than over these products.
* Exported graphs, and compiled ones with gradients, take :func:`sru_halves`: the halves of X^w as two tensors, for the
  CRU squeezes them apart. Runtimes fuse element-wise operators, and stop at every
  split, concatenation and reshape of a whole map; so GN is one product and one sum
  by numbers of each channel, whose roots and divisions end before the maps.
* A softmax over two is a sigmoid of the difference.
* A norm behind the fuse scales beta and shifts the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv import equations
from mmscconv.equations import per_channel

# In place of infinite thresholds: ncnn's text files have no infinity.
LARGEST_FINITE = torch.finfo(torch.float32).max


def affine(gamma: Tensor, beta: Tensor, eps: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return scale and shift of W_gamma * GN, W_gamma * gamma and W_gamma * beta, (C) each, in at least fp32."""
    dtype = torch.promote_types(dtype, torch.float32)
    gamma, beta = gamma.to(dtype), beta.to(dtype)
    w = equations.gamma_weights(gamma, eps)
    return w * gamma, w * beta


def logit(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, one_operator: bool = False) -> Tensor:
    """Return W_gamma * GN(X), the argument of Eq. 3's sigmoid, in the dtype of ``scale``.

    Args:
        x: (N, C, H, W).
        scale, shift: (C), of :func:`affine`.
        num_groups, eps: GN's settings.
        one_operator: Use torch.group_norm, for graphs without gradients alone; :func:`mmscconv.equations.gn` says why.
    """
    x = x.to(scale.dtype)
    if one_operator:
        # No autocast lowers group_norm on fp32 input; unlike nn.GroupNorm, it also takes one value per group.
        return torch.group_norm(x, num_groups, scale, shift, eps)
    return per_channel(scale) * equations.standardized(x, num_groups, eps) + per_channel(shift)


def sru(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool = False,
    one_operator: bool = False,
) -> Tensor:
    """Eq. 1-4 of ``x`` with the affine of :func:`affine`; other arguments as above and as of :func:`equations.gate`."""
    z = logit(x, scale, shift, num_groups, eps, one_operator)
    return separate_and_cross(x, z > threshold, None if hard else z.sigmoid())


def sru_halves(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool = False,
    one_operator: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the halves of X^w, (N, C/2, H, W) each, in operators that runtimes fuse; arguments as of :func:`sru`."""
    half = int(x.shape[1]) // 2
    threshold = min(max(threshold, -LARGEST_FINITE), LARGEST_FINITE)
    parts = x.split(half, dim=1)
    if one_operator:
        logits = logit(x, scale, shift, num_groups, eps, one_operator).split(half, dim=1)
    else:
        affine = (t.split(half, dim=1) for t in channel_affine(x, scale, shift, num_groups, eps))
        logits = tuple(part.to(f.dtype) * f + s for part, f, s in zip(parts, *affine, strict=True))
    kept, less = [], []
    for part, z in zip(parts, logits, strict=True):
        kept.append((z > threshold) * part)
        less.append(part - kept[-1] if hard else z.sigmoid() * (part - kept[-1]))
    up, low = crossed(kept, less, hard)
    return up.to(x.dtype), low.to(x.dtype)


def channel_affine(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return factor and summand, (N, C, 1, 1) each, with which W_gamma * GN(X) is factor * X + summand.

    The variance of a group is the mean of its channels' variances and of the squared distances of their means: no
    square of a mean is subtracted, which would lose the digits of maps that lie far from zero.
    """
    channels = int(x.shape[1])  # a number in traced graphs, too, where sizes are tensors
    groups = (num_groups, channels // num_groups)
    x = x.to(scale.dtype)
    means = x.mean(dim=(2, 3), keepdim=True)
    variances = (x - means).square().mean(dim=(2, 3), keepdim=True)
    means, variances = means.reshape(-1, *groups), variances.reshape(-1, *groups)
    mean = means.mean(dim=2, keepdim=True)
    variance = (variances + (means - mean).square()).mean(dim=2, keepdim=True)
    factor = scale.view(groups) * torch.rsqrt(variance + eps)
    summand = shift.view(groups) - mean * factor
    # The reshape also keeps runtimes from doing the small operators above once for each element of X.
    return factor.reshape(-1, channels, 1, 1), summand.reshape(-1, channels, 1, 1)


def separate_and_cross(x: Tensor, informative: Tensor, weights: Tensor | None) -> Tensor:
    """Return X^w of Eq. 4 from the gate's decisions W > t and the weights W, None for the hard gate."""
    kept = informative * x
    less = x - kept
    if weights is not None:
        less = weights * less
    return torch.cat(crossed(kept.chunk(2, dim=1), less.chunk(2, dim=1), weights is None), dim=1).to(x.dtype)


def crossed(kept: Sequence[Tensor], less: Sequence[Tensor], hard: bool) -> tuple[Tensor, Tensor]:
    """Return X11 + X22 and X21 + X12 of Eq. 4 from the halves of K and L; with the hard gate, X1 = K and X2 = L."""
    if hard:
        return kept[0] + less[1], kept[1] + less[0]
    # X11 + X22 and X21 + X12 share the less informative part.
    shared = less[0] + less[1]
    return kept[0] + shared, kept[1] + shared


def y1_weight(gwc: Tensor, pwc1: Tensor, groups: int, centre: int) -> Tensor:
    """Return the weight of the one dense convolution of X_up that gives Y1 = M^G X_up + M^P1 X_up (Eq. 5).

    Args:
        gwc: (C, u / g, k1, k2), M^G.
        pwc1: (C, u, 1, 1), M^P1.
        groups: g.
        centre: Number of the tap, counted line by line, that sees the position of the output, as M^P1 does.

    Returns:
        (C, u, k1, k2).
    """
    c, each, *size = gwc.shape
    blocks = torch.eye(groups, dtype=gwc.dtype, device=gwc.device).view(groups, 1, groups, 1, 1)
    dense = (gwc.reshape(groups, c // groups, 1, each, -1) * blocks).reshape(c, groups * each, -1)
    taps = dense.shape[2]
    return (dense + F.pad(pwc1.flatten(2), (centre, taps - 1 - centre))).unflatten(2, size)


def fuse(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None = None,
    pwc2_out: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Eq. 5-9 from the convolutions' outputs, and scale * Y + shift if these are given.

    Args:
        y1, y1_addend: (N, C, H, W); Y1 is their sum, or ``y1`` alone.
        x_low: (N, l, H, W), X_low.
        pwc2_out: (N, C - l, H, W), M^P2 X_low, or None if Y2 is ``x_low`` alone.
        scale, shift: (C), of a norm behind the layer.
    """
    y1 = y1 if y1_addend is None else equations.y1(y1, y1_addend)
    y2 = equations.y2(pwc2_out, x_low)
    s1, s2 = y1.mean(dim=(2, 3)), y2.mean(dim=(2, 3))
    beta1, beta2 = (s1 - s2).sigmoid(), (s2 - s1).sigmoid()
    if scale is not None:
        beta1, beta2 = beta1 * scale.to(y1.dtype), beta2 * scale.to(y1.dtype)
    y = beta1[..., None, None] * y1 + beta2[..., None, None] * y2
    return y if shift is None else y + per_channel(shift.to(y1.dtype))
