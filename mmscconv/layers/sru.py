"""SRU, the spatial reconstruction unit: section 2.1, Eq. 1-4 of the SCConv paper (CVPR 2023).

The equations are in :mod:`mmscconv.equations`, with what the paper leaves open.
The number of GN groups is not in the paper either: 16 is our choice.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from mmscconv import equations, ops
from mmscconv.layers import fused
from mmscconv.layers.arguments import Device, check_input, check_real, checked_integer
from mmscconv.layers.conv_like import reset
from mmscconv.layers.group_norm import GroupNorm
from mmscconv.layers.intact import built, replaceable
from mmscconv.layers.no_weight import NoWeight
from mmscconv.layers.tracing import OneNode

GATES = ('soft', 'hard')
# State-dict keys of earlier deploy forms: the affine, which is now computed from gn.
EARLIER_KEYS = ('scale', 'shift')


@replaceable
class SRU(OneNode, NoWeight):
    """Separate informative from less informative positions, then cross-reconstruct them (Eq. 1-4).

    ::

        W      = sigmoid(W_gamma * GN(X))        # Eq. 1-3, W_gamma = gamma / sum(gamma)
        W1, W2 = gate(W)                         # Eq. 3, see mmscconv.equations.gate
        X^w    = cat(X11 + X22, X21 + X12)       # Eq. 4, X1 = W1 * X and X2 = W2 * X in halves

    Args:
        channels: Channels C of the input; even.
        num_groups: Groups of the GN; where it does not divide ``channels``, the
            greatest common divisor is taken. The default of 16 is our choice.
        threshold: t of the gate, the paper's 0.5. At 0 or less every position is
            informative, at 1 or more none is.
        gate: ``'soft'`` (default, our reading of Eq. 3) or ``'hard'``. The hard
            gate passes no gradient to gamma and beta; ``requires_grad`` is False
            for both, or DDP would wait for one.
        eps: Added to the variance in GN; also the least magnitude of
            sum(gamma), which keeps Eq. 2 finite where gammas cancel (our choice).
        backend: ``'plain'``, ``'native'`` or ``'triton'``
            (:mod:`mmscconv.ops.backend`); None for the fastest that runs.
        device, dtype: Device and dtype of the parameters, as ``nn.Conv2d``'s.

    Shape:
        Input and output: (N, C, H, W) or (C, H, W), any floating dtype; the
        output has the input's dtype, also under autocast.

    Raises:
        ValueError: Odd or non-positive ``channels``, unknown ``gate`` or
            ``backend``, a ``threshold`` that is NaN, an ``eps`` that is not positive,
            or an input of another shape.
        RuntimeError: A ``backend`` that cannot run on the input.
    """

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
        if checked_integer('channels', channels) % 2:
            raise ValueError(f'SRU halves its channels: channels must be even, got channels={channels}')
        checked_integer('num_groups', num_groups)
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
        self.gn = GroupNorm(math.gcd(num_groups, channels), channels, eps=eps, device=device, dtype=dtype)
        if gate == 'hard':
            self.gn.requires_grad_(False)
        self.built = built(self, ['gn'])

    def reset_parameters(self) -> None:
        """Set gamma to 1 and beta to 0."""
        reset(self.gn)

    @property
    def logit_threshold(self) -> float:
        """The threshold on W's logit, log(t / (1 - t)); infinite if t lies outside of (0, 1)."""
        if 0 < self.threshold < 1:
            return math.log(self.threshold / (1 - self.threshold))
        return -math.inf if self.threshold <= 0 else math.inf

    def logit(self, x: Tensor) -> Tensor:
        """Return W_gamma * GN(X) of (N, C, H, W), the argument of Eq. 3's sigmoid, in at least fp32."""
        w = equations.gamma_weights(self.gn.weight, self.gn.eps)
        return equations.per_channel(w) * self.gn(x)

    def informative(self, logit: Tensor) -> Tensor:
        """Return the boolean mask W > threshold, decided on the logit."""
        return logit > self.logit_threshold

    def separate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the masks W1 and W2 (Eq. 3) of (N, C, H, W), in at least fp32."""
        return equations.gate(self.logit(x), self.logit_threshold, self.gate == 'hard')

    @fused.replaced_by(fused.sru, fused.sru_halves)
    def forward(self, x: Tensor) -> Tensor:
        w1, w2 = self.separate(x)
        return equations.reconstruct(x, w1, w2)

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is an input of this layer."""
        check_input(type(self).__name__, x, self.channels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in EARLIER_KEYS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{self.channels}, threshold={self.threshold}, gate={self.gate!r}'
