"""The arithmetic of the popular unofficial ScConv module, for checkpoints trained with it.

Written from a description of that module. :class:`mmscconv.SCConv` follows the paper; here

* the softmax of Eq. 8 runs over all 2C channels of both branches together, not
  over the two branches per channel: outputs are about C times smaller;
* the GWC is biased;
* the gate compares W itself with the threshold, in at least fp32: where fp32
  rounds W to 0.5 it differs from SCConv, which decides on the logit;
* GN may be the unofficial module's own, which divides by the unbiased standard deviation plus 1e-10.

``mmscconv.convert_weights`` renames the unofficial module's weights for these layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscconv import equations
from mmscconv.layers.arguments import Device, Size2d
from mmscconv.layers.conv_like import Conv2dLike
from mmscconv.layers.cru import CRU
from mmscconv.layers.sru import SRU

NUM_GROUPS = 4  # the unofficial module's default since its last change; 16 before


class LegacySRU(SRU):
    """SRU with the soft gate as the unofficial module computes it.

    Args:
        channels: C; even.
        num_groups: The unofficial module's ``group_num``.
        threshold: The unofficial module's ``gate_treshold``.
        torch_gn: True for ``nn.GroupNorm``, False for the unofficial module's own norm,
            whose groups are C*H*W / num_groups successive values; ``num_groups`` need
            not divide C then.
        device, dtype: Device and dtype of the weights.

    Shape:
        Input and output: (N, C, H, W) or (C, H, W).

    Raises:
        ValueError: Arguments that :class:`SRU` refuses; ``num_groups`` that does not
            divide C (with ``torch_gn=False``: the number of values of an input), or
            leaves one value per group, which has no unbiased deviation.
    """

    def __init__(
        self,
        channels: int,
        num_groups: int = NUM_GROUPS,
        threshold: float = 0.5,
        torch_gn: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        eps = 1e-5 if torch_gn else 1e-10
        super().__init__(channels, num_groups, threshold, eps=eps, backend='plain', device=device, dtype=dtype)
        if torch_gn and channels % num_groups:
            raise ValueError(
                f'num_groups={num_groups} does not divide channels={channels}: '
                'give the group_num that the checkpoint was trained with'
            )
        self.num_groups = num_groups
        self.torch_gn = torch_gn

    def logit(self, x: Tensor) -> Tensor:
        """Return ``w * GN(x)``, the argument of Eq. 3's sigmoid, in at least fp32."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        gamma, beta = (equations.per_channel(p.to(x.dtype)) for p in (self.gn.weight, self.gn.bias))
        normalized = self.gn(x) if self.torch_gn else self._standardized(x) * gamma + beta
        return normalized * (gamma / gamma.sum())

    def _standardized(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        size, rest = divmod(c * h * w, self.num_groups)
        if rest or size == 1:
            raise ValueError(
                f'{c} x {h} x {w} values cannot be normalized in num_groups={self.num_groups} groups '
                'of two or more: give the group_num that the checkpoint was trained with, or a larger input'
            )
        groups = x.reshape(n, self.num_groups, size)
        centred = groups - groups.mean(dim=2, keepdim=True)
        return (centred / (groups.std(dim=2, keepdim=True) + self.gn.eps)).reshape(x.shape)

    def informative(self, logit: Tensor) -> Tensor:
        """Return the boolean mask W > threshold, decided on W."""
        return logit.sigmoid() > self.threshold

    def separate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return W1 and W2 of the soft gate."""
        logit = self.logit(x)
        w, informative = logit.sigmoid(), self.informative(logit)
        return torch.where(informative, 1.0, w), torch.where(informative, 0.0, w)

    def extra_repr(self) -> str:
        return f'{self.channels}, num_groups={self.num_groups}, threshold={self.threshold}, torch_gn={self.torch_gn}'


class LegacyCRU(CRU):
    """CRU with a biased GWC and one softmax over the channels of both branches.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, alpha, squeeze_ratio, groups:
            Arguments of :class:`CRU`; ``alpha`` strictly between 0 and 1.
        device, dtype: Device and dtype of the weights.

    Shape:
        As for CRU.

    Raises:
        ValueError: Arguments that CRU refuses, and an ``alpha`` that leaves one branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d = 3,
        stride: Size2d = 1,
        padding: Size2d | str | None = None,
        dilation: Size2d = 1,
        alpha: float = 0.5,
        squeeze_ratio: int = 2,
        groups: int = 2,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, alpha, squeeze_ratio, groups,
            backend='plain', device=device, dtype=dtype,
        )  # fmt: skip
        if not 0 < alpha < 1:
            raise ValueError(f'the unofficial module has two branches: alpha must lie between 0 and 1, got {alpha}')
        self.gwc = nn.Conv2d(
            self.channels.squeezed_up,
            out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            groups,
            device=device,
            dtype=dtype,
        )

    def fuse(self, y1: Tensor | None, y2: Tensor | None) -> Tensor:
        """Return beta1 * Y1 + beta2 * Y2 with one softmax over the channels of both branches."""
        assert y1 is not None and y2 is not None  # 0 < alpha < 1
        beta1, beta2 = torch.cat((equations.pooling(y1), equations.pooling(y2)), dim=1).softmax(dim=1).chunk(2, dim=1)
        return beta1.to(y1.dtype) * y1 + beta2.to(y1.dtype) * y2


class LegacySCConv(Conv2dLike):
    """The unofficial module with ``nn.Conv2d``'s argument order: ``LegacyCRU(LegacySRU(X))``.

    The unofficial module itself has stride 1, as many output as input channels and
    "same" padding (``padding=kernel_size // 2`` here). Strides, dilation and other
    channel counts follow SCConv; the unofficial module has no counterpart. This class
    does not subclass :class:`SCConv`, whose ops and deploy form compute the paper's
    softmax: it always runs the plain operations, and ``switch_to_deploy`` of a model
    changes neither this layer nor the norm behind it.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1; the unofficial module's ``group_size`` is ``gwc_groups``.
        bias: Add one bias per output channel at the end.
        padding_mode: Must be ``'zeros'``.
        device, dtype: Device and dtype of all parameters and buffers.
        alpha, squeeze_ratio: The unofficial module's ``alpha`` and ``squeeze_radio``.
        gwc_groups: The unofficial module's ``group_size``.
        num_groups: The unofficial module's ``group_num``, which no checkpoint records.
        threshold: The unofficial module's ``gate_treshold``, which no checkpoint records.
        torch_gn: The unofficial module's ``torch_gn``.

    Shape:
        Input (N, in_channels, H, W) or (in_channels, H, W); output as ``nn.Conv2d``'s.

    Raises:
        ValueError: Arguments that SRU or CRU refuse, and ``groups`` other than 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size2d,
        stride: Size2d = 1,
        padding: Size2d | str = 0,
        dilation: Size2d = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = 'zeros',
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.5,
        squeeze_ratio: int = 2,
        gwc_groups: int = 2,
        num_groups: int = NUM_GROUPS,
        threshold: float = 0.5,
        torch_gn: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.sru = LegacySRU(in_channels, num_groups, threshold, torch_gn, device, dtype)
        self.cru = LegacyCRU(
            in_channels, out_channels, *self.inner_window, alpha, squeeze_ratio, gwc_groups, device, dtype
        )

    @property
    def multiplies(self) -> bool:
        """True: the output is a product of several convolutions' weights."""
        return True

    def transform(self, x: Tensor) -> Tensor:
        return self.cru(self.sru(x))
