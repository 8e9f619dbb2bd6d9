"""Average pooling aligned with the centres of a convolution's windows.

SCConv's 1x1 convolutions run beside a strided k x k one and need their input at
the same positions. The paper does not say how; average pooling by the stride
explains its printed counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor
from torch.fx import Proxy

from mmscconv.layers.arguments import Size2d, check_window, padding_amounts, pair
from mmscconv.layers.tracing import OneNode


class AlignedAvgPool2d(OneNode):
    """Average ``stride`` x ``stride`` positions around the centre of each window of a convolution.

    Output position i averages the ``stride`` input positions centred on the
    middle of window i, ``i * stride - padding + dilation * (kernel_size - 1) / 2``;
    a centre between two positions is rounded so that the first average starts
    nearer to position 0. Positions outside of the image do not count; a window
    without any other position gives 0, like the convolution's zero padding.

    For k=3, stride=2, padding=1 this is ``nn.AvgPool2d(2, ceil_mode=True)``; for
    stride 1 with "same" padding it is the identity.

    Args:
        kernel_size, stride, padding, dilation: The convolution's, as
            ``nn.Conv2d`` takes them.

    Shape:
        (N, C, H, W) to (N, C, H', W') with H', W' exactly the convolution's.

    Raises:
        ValueError: A window larger than the padded input.
    """

    def __init__(
        self, kernel_size: Size2d, stride: Size2d = 1, padding: Size2d | str = 0, dilation: Size2d = 1
    ) -> None:
        super().__init__()
        self.kernel_size = pair('kernel_size', kernel_size, 1)
        self.stride = pair('stride', stride, 1)
        self.dilation = pair('dilation', dilation, 1)
        self.padding = padding_amounts(padding, self.kernel_size, self.stride, self.dilation)
        extents = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        self._slack = [sum(p) - e for p, e in zip(self.padding, extents, strict=True)]
        # int() rounds towards 0: k=3, s=2, p=1 must give 0, not -1.
        self._offset = [
            int((e - 2 * p[0] - (s - 1)) / 2) for e, p, s in zip(extents, self.padding, self.stride, strict=True)
        ]

    @property
    def is_identity(self) -> bool:
        """True if the output equals the input for every size."""
        return self.stride == (1, 1) and self.is_plain

    @property
    def is_plain(self) -> bool:
        """True if the windows lie side by side from position 0 on, the last one cut off where the image ends."""
        return self._slack == [0, 0] and self._offset == [0, 0]

    @property
    def overhangs(self) -> bool:
        """True if a window may lie partly outside of the image, at some size."""
        axes = zip(self.stride, self._offset, self._slack, strict=True)
        return any(step > 1 and (start < 0 or start + slack + step > 1) for step, start, slack in axes)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self.node(x)
        if self.is_identity:
            return x
        if self.is_plain:
            # Does not read the size of x: dynamic export stays possible.
            # The last argument changes nothing without padding; ncnn would divide a cut window by its whole area.
            return F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        check_window(x.shape[2:], self.kernel_size, self.padding, self.dilation)
        pads = []
        for axis in (1, 0):  # F.pad starts with the last axis
            size, step, start = x.shape[axis + 2], self.stride[axis], self._offset[axis]
            out = (size + self._slack[axis] - 1) // step + 1
            pads += [-start, start + out * step - size]
        pooled = F.avg_pool2d(F.pad(x, pads), self.stride)
        if not self.overhangs:
            return pooled
        # The share of each window inside of the image, by operators: graphs serve other sizes than they were traced at.
        ones = torch.ones_like(x[:1, :1], dtype=torch.promote_types(x.dtype, torch.float32))  # 2/3 is coarse in bf16
        inside = F.avg_pool2d(F.pad(ones, pads), self.stride)
        return (pooled / inside.clamp(min=0.5 / (self.stride[0] * self.stride[1]))).to(x.dtype)

    def extra_repr(self) -> str:
        return f'kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}'
