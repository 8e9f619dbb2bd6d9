"""Rearranged forms of :mod:`mmscconv.equations`, equal up to rounding, for graphs and kernels.

* GN and Eq. 2's weights are both affine per channel, so one scale and one shift
  do both: W_gamma * GN(X) = (W_gamma * gamma) * (X - mu) / sigma + W_gamma * beta.
  Kernels take these two vectors, and exporters see one group norm.
* With K = (W > t) * X and L = W * (X - K), the soft gate's X1 = K + L and X2 = L:
  ONNX Runtime takes several times longer over a choice than over these products.
* A norm behind the fuse scales beta and shifts the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmscconv import equations
from mmscconv.equations import per_channel


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
        num_groups, eps: Of GN.
        one_operator: Use torch.group_norm, for graphs alone; :func:`mmscconv.equations.gn` says why.
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


def separate_and_cross(x: Tensor, informative: Tensor, weights: Tensor | None) -> Tensor:
    """Return X^w of Eq. 4 from the gate's decisions W > t and the weights W, None for the hard gate."""
    kept = informative * x
    less = x - kept
    if weights is not None:
        less = weights * less
    kept_a, kept_b = kept.chunk(2, dim=1)
    less_a, less_b = less.chunk(2, dim=1)
    if weights is None:
        return torch.cat((kept_a + less_b, kept_b + less_a), dim=1)
    # X11 + X22 and X21 + X12 share the less informative part.
    shared = less_a + less_b
    return torch.cat((kept_a + shared, kept_b + shared), dim=1).to(x.dtype)


def fuse(
    first: Tensor,
    low: Tensor,
    second: Tensor | None = None,
    made: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Eq. 5-9 from the convolutions' outputs, and scale * Y + shift if these are given.

    Args:
        first, second: (N, C, H, W); Y1 is their sum, or ``first`` alone.
        low: (N, l, H, W), X_low.
        made: (N, C - l, H, W), M^P2 X_low, or None if Y2 is ``low`` alone.
        scale, shift: (C), of a norm behind the layer.
    """
    y1 = first if second is None else equations.y1(first, second)
    y2 = equations.y2(made, low)
    if scale is None or shift is None:
        return equations.fuse(y1, y2)
    beta1, beta2 = (beta.to(y1.dtype) for beta in equations.betas(equations.pooling(y1), equations.pooling(y2)))
    scale, shift = (per_channel(t.to(y1.dtype)) for t in (scale, shift))
    return (beta1 * scale) * y1 + ((beta2 * scale) * y2 + shift)
