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
import sys

import torch
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.layers.arguments import Device, check_input, check_real, whole

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
        backend: ``'plain'``, ``'native'`` or ``'triton'``
            (:mod:`mmscconv.ops.backend`); None for the fastest that runs.
        device, dtype: Of the weights.

    Shape:
        Input and output: (N, C, H, W) or (C, H, W), any floating dtype; the
        output has the input's dtype, also under autocast.

    Raises:
        ValueError: Odd or non-positive ``channels``, unknown ``gate`` or
            ``backend``, a ``threshold`` that is NaN, an ``eps`` that is not positive,
            or an input of another shape.
        RuntimeError: A ``backend`` that cannot run on the input.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        channels: int,
        num_groups: int = 16,
        threshold: float = 0.5,
        gate: str = 'soft',
        eps: float = 1e-5,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if whole('channels', channels) % 2:
            raise ValueError(f'SRU halves its channels: channels must be even, got channels={channels}')
        whole('num_groups', num_groups)
        if gate not in GATES:
            raise ValueError(f'gate must be one of {GATES}, got gate={gate!r}')
        check_real('threshold', threshold)
        check_real('eps', eps)
        if not 0 < eps <= sys.float_info.max:
            raise ValueError(f'eps must be positive and finite, got eps={eps}')
        ops.check_backend(backend)
        self.backend = backend
        self.channels = channels
        self.threshold = threshold
        self.gate = gate
        self.gn = nn.GroupNorm(math.gcd(num_groups, channels), channels, eps=eps, device=device, dtype=dtype)
        if gate == 'hard':
            self.gn.requires_grad_(False)
        self.register_buffer('scale', None)
        self.register_buffer('shift', None)

    def switch_to_deploy(self) -> None:
        """Keep the affine with Eq. 2's weights folded in, in place of computing it at each call."""
        self.scale, self.shift = (t.detach() for t in self.affine(self.gn.weight.dtype))

    @property
    def logit_threshold(self) -> float:
        """The threshold on W as one on its logit; infinite where no weight lies on the other side."""
        if 0 < self.threshold < 1:
            return math.log(self.threshold / (1 - self.threshold))
        return -math.inf if self.threshold <= 0 else math.inf

    def affine(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return scale and shift of GN with Eq. 2's ``w`` folded in, w * gamma and w * beta, in at least fp32."""
        dtype = torch.promote_types(dtype, torch.float32)
        if self.scale is not None and self.shift is not None:
            return self.scale.to(dtype), self.shift.to(dtype)
        gamma, beta = self.gn.weight.to(dtype), self.gn.bias.to(dtype)
        total = gamma.sum()
        floor = torch.where(total < 0, -self.gn.eps, self.gn.eps)
        w = gamma / torch.where(total.abs() < self.gn.eps, floor, total)
        return w * gamma, w * beta

    def logit(self, x: Tensor) -> Tensor:
        """Return ``w * GN(x)``, the argument of Eq. 3's sigmoid, in at least fp32."""
        return ops.logit(x, *self.affine(x.dtype), self.gn.num_groups, self.gn.eps)

    def informative(self, logit: Tensor) -> Tensor:
        """Return the boolean mask W > threshold, decided on the logit."""
        return logit > self.logit_threshold

    def forward(self, x: Tensor) -> Tensor:
        check_input('SRU', x, self.channels)
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        return ops.sru(x, *self.op_arguments(x.dtype), backend=self.backend)

    def op_arguments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, int, float, float, bool]:
        """Return what :func:`mmscconv.ops.sru` takes besides an input of ``dtype``."""
        return *self.affine(dtype), self.gn.num_groups, self.gn.eps, self.logit_threshold, self.gate == 'hard'

    def extra_repr(self) -> str:
        return f'{self.channels}, threshold={self.threshold}, gate={self.gate!r}'
