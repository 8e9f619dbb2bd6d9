"""Group normalization as Eq. 1 of the SCConv paper."""

from __future__ import annotations

from torch import Tensor, nn

from mmscconv import equations


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that computes Eq. 1 in at least fp32, whatever the dtype of input and weights.

    Shape:
        (N, C, H, W) to the same, in at least fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        return equations.gn(x, self.num_groups, self.weight, self.bias, self.eps)
