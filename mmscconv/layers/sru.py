"""SRU, the spatial reconstruction unit: section 2.1, Eq. 1-4 of the SCConv paper (CVPR 2023).

What the paper leaves open, and the reading taken here:

* Below the threshold the default (soft) gate keeps the sigmoid's value in both
  masks; the paper only says what happens above it. The hard gate is the other
  reading, with binary masks.
* The number of GN groups is not in the paper: 16 is our choice.
* The decision W > t is taken on the logit, in at least fp32. W lies within
  about 1/C of 0.5, finer than fp16 or bf16 resolve.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmscconv.layers.arguments import check_input

GATES = ('soft', 'hard')


class SRU(nn.Module):
    """Separate informative from less informative positions, then cross-reconstruct them.

    With ``w = gamma / sum(gamma)`` (Eq. 2) and ``W = sigmoid(w * GN(X))`` (Eq. 3):

    ====  =====================================  ===========================
    gate  W1 (informative)                       W2 (less informative)
    ====  =====================================  ===========================
    soft  1 where W > threshold, else W          0 where W > threshold, else W
    hard  1 where W > threshold, else 0          1 - W1
    ====  =====================================  ===========================

    ``X1 = W1 * X`` and ``X2 = W2 * X`` are halved along the channels and crossed
    (Eq. 4): ``cat(X11 + X22, X21 + X12)``.

    Args:
        channels: Channels C of the input; even.
        num_groups: Groups of the GN; where it does not divide ``channels``, the
            greatest common divisor is taken. The default of 16 is our choice.
        threshold: t of the gate, the paper's 0.5. At 0 or less every position is
            informative, at 1 or more none is.
        gate: ``'soft'`` (default, our reading of Eq. 3) or ``'hard'``. The hard
            gate passes no gradient to gamma and beta; they are made not to
            require one, so that DDP does not wait for it.
        eps: Added to the variance in GN; also the least magnitude of
            sum(gamma), which keeps Eq. 2 finite where gammas cancel (our choice).

    Shape:
        Input and output: (N, C, H, W) or (C, H, W), any floating dtype; the
        output has the input's dtype, also under autocast.

    Raises:
        ValueError: Odd or non-positive ``channels``, unknown ``gate``, a
            ``threshold`` that is NaN, or an input of another shape.
    """

    def __init__(
        self, channels: int, num_groups: int = 16, threshold: float = 0.5, gate: str = 'soft', eps: float = 1e-5
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f'SRU halves its channels: channels must be even and positive, got channels={channels}')
        if num_groups < 1:
            raise ValueError(f'num_groups must be positive, got num_groups={num_groups}')
        if gate not in GATES:
            raise ValueError(f'gate must be one of {GATES}, got gate={gate!r}')
        if math.isnan(threshold):
            raise ValueError('threshold must be a number, got threshold=nan')
        self.channels = channels
        self.threshold = threshold
        self.gate = gate
        self.gn = nn.GroupNorm(math.gcd(num_groups, channels), channels, eps=eps)
        if gate == 'hard':
            self.gn.requires_grad_(False)

    def logit(self, x: Tensor) -> Tensor:
        """Return ``w * GN(x)``, the argument of Eq. 3's sigmoid, in at least fp32.

        ``w`` is folded into the affine of GN: w * (gamma * xhat + beta).
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        gamma, beta = self.gn.weight.to(dtype), self.gn.bias.to(dtype)
        total = gamma.sum()
        floor = torch.full_like(total, self.gn.eps).copysign(total)
        w = gamma / torch.where(total.abs() < self.gn.eps, floor, total)
        # No autocast lowers group_norm on fp32 input; unlike nn.GroupNorm, it also takes one value per group.
        return torch.group_norm(x.to(dtype), self.gn.num_groups, w * gamma, w * beta, self.gn.eps)

    def informative(self, logit: Tensor) -> Tensor:
        """Return the boolean mask W > threshold, decided on the logit."""
        if self.threshold <= 0:
            return torch.ones_like(logit, dtype=torch.bool)
        if self.threshold >= 1:
            return torch.zeros_like(logit, dtype=torch.bool)
        return logit > math.log(self.threshold / (1 - self.threshold))

    def forward(self, x: Tensor) -> Tensor:
        check_input('SRU', x, self.channels)
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        logit = self.logit(x)
        informative = self.informative(logit)
        if self.gate == 'soft':
            weight = logit.sigmoid()
            w1, w2 = weight.masked_fill(informative, 1), weight.masked_fill(informative, 0)
        else:
            w1, w2 = informative, ~informative
        x11, x12 = (w1 * x).chunk(2, dim=1)
        x21, x22 = (w2 * x).chunk(2, dim=1)
        return torch.cat((x11 + x22, x21 + x12), dim=1).to(x.dtype)

    def extra_repr(self) -> str:
        return f'{self.channels}, threshold={self.threshold}, gate={self.gate!r}'
