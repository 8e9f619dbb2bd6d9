"""Eq. 1-9 of the SCConv paper (CVPR 2023) as functions of tensors, in the paper's order and symbols.

This file is the definition of correct. ``backend='plain'`` runs it, and kernels
and rearranged forms (:mod:`mmscconv.identities`) are tested against it. The
convolutions of Eq. 5 and 6 are modules: see :class:`mmscconv.CRU`.

Three choices are ours where the paper leaves something open:

* The arithmetic of Eq. 1-3 runs in at least fp32: W lies within about 1/C of
  0.5, finer than fp16 or bf16 resolve. The decision W > t is taken on the logit.
* The sum of the gammas in Eq. 2 keeps a least magnitude, so that gammas which
  cancel give finite weights.
* Below the threshold the soft gate keeps the sigmoid's value in both masks; the
  paper only says what happens above it. The hard gate is the other reading.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gn(x: Tensor, num_groups: int, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Eq. 1, X_out = gamma * (X - mu) / sqrt(sigma^2 + eps) + beta, with mu and sigma of each sample's groups.

    The statistics are written out. Torch's own operator has no forward-mode
    derivative of its gradient, and in torch 2.11 its backward pass crashes the process
    if a channels-last CPU input needs no gradient.

    Args:
        x: (N, C, H, W).
        num_groups: Groups of channels; divides C.
        gamma, beta: (C).
        eps: Added to the variance.

    Returns:
        (N, C, H, W), in at least fp32.
    """
    normed = standardized(x, num_groups, eps)
    return per_channel(gamma.to(normed.dtype)) * normed + per_channel(beta.to(normed.dtype))


def standardized(x: Tensor, num_groups: int, eps: float) -> Tensor:
    """Eq. 1 without its affine, (X - mu) / sqrt(sigma^2 + eps), in at least fp32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    groups = x.to(dtype).unflatten(1, (num_groups, x.shape[1] // num_groups))
    centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
    variance = centred.square().mean(dim=(2, 3, 4), keepdim=True)
    return (centred * torch.rsqrt(variance + eps)).flatten(1, 2)


def gamma_weights(gamma: Tensor, eps: float) -> Tensor:
    """Eq. 2, W_gamma = gamma / sum(gamma), (C), in at least fp32; the sum's magnitude is at least ``eps``."""
    gamma = gamma.to(torch.promote_types(gamma.dtype, torch.float32))
    total = gamma.sum()
    return gamma / torch.where(total < 0, total.clamp(max=-eps), total.clamp(min=eps))


def gate(logit: Tensor, threshold: float, hard: bool = False) -> tuple[Tensor, Tensor]:
    """Eq. 3, W1 and W2 of W = sigmoid(logit), where ``logit`` is W_gamma * GN(X).

    ====  =====================================  ===========================
    gate  W1 (informative)                       W2 (less informative)
    ====  =====================================  ===========================
    soft  1 where W > t, else W                  0 where W > t, else W
    hard  1 where W > t, else 0                  1 - W1
    ====  =====================================  ===========================

    Args:
        logit: (N, C, H, W).
        threshold: logit(t) = log(t / (1 - t)); infinite if all or no positions are informative.
        hard: Binary masks.
    """
    informative = logit > threshold
    if hard:
        w1 = informative.to(logit.dtype)
        return w1, 1 - w1
    w = torch.sigmoid(logit)
    return torch.where(informative, 1.0, w), torch.where(informative, 0.0, w)


def reconstruct(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Eq. 4, X^w = cat(X11 + X22, X21 + X12) with X1 = W1 * X and X2 = W2 * X halved along the channels."""
    x1, x2 = w1 * x, w2 * x
    x11, x12 = x1.chunk(2, dim=1)
    x21, x22 = x2.chunk(2, dim=1)
    return torch.cat((x11 + x22, x21 + x12), dim=1).to(x.dtype)


def sru(
    x: Tensor, gamma: Tensor, beta: Tensor, num_groups: int, eps: float, threshold: float, hard: bool = False
) -> Tensor:
    """Eq. 1-4: X^w of (N, C, H, W), C even, in the dtype of ``x``; arguments as above."""
    logit = per_channel(gamma_weights(gamma, eps)) * gn(x, num_groups, gamma, beta, eps)
    return reconstruct(x, *gate(logit, threshold, hard))


def y1(gwc_of_up: Tensor, pwc1_of_up: Tensor) -> Tensor:
    """Eq. 5, Y1 = M^G X_up + M^P1 X_up."""
    return gwc_of_up + pwc1_of_up


def y2(pwc2_of_low: Tensor | None, x_low: Tensor) -> Tensor:
    """Eq. 6, Y2 = cat(M^P2 X_low, X_low); X_low alone if it already has all of Y2's channels."""
    return x_low if pwc2_of_low is None else torch.cat((pwc2_of_low, x_low), dim=1)


def pooling(y: Tensor) -> Tensor:
    """Eq. 7, S_m = mean of Y_m over the positions, (N, C, 1, 1)."""
    return y.mean(dim=(2, 3), keepdim=True)


def betas(s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8, beta_m = exp(S_m) / (exp(S_1) + exp(S_2)): the softmax over the two branches, per channel."""
    beta1, beta2 = torch.stack((s1, s2)).softmax(dim=0)
    return beta1, beta2


def fuse(y1: Tensor, y2: Tensor) -> Tensor:
    """Eq. 7-9, Y = beta1 * Y1 + beta2 * Y2, of two (N, C, H, W)."""
    beta1, beta2 = (beta.to(y1.dtype) for beta in betas(pooling(y1), pooling(y2)))
    return beta1 * y1 + beta2 * y2


def per_channel(values: Tensor) -> Tensor:
    """(C) as (C, 1, 1), to be broadcast over (N, C, H, W)."""
    return values.view(-1, 1, 1)
