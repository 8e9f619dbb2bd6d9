"""CRU, the channel reconstruction unit: section 2.2, Eq. 5-9 of the SCConv paper (CVPR 2023).

Our reading of points that the paper leaves open:

* Stride: the upper squeeze runs at the input's size and the GWC is strided;
  PWC1 and the whole lower branch see the average-pooled input, as the printed
  FLOPs require.
* Inner norms and biases: Eq. 5-9 have none (the default). ``inner_norm=True``
  adds the smallest set that gives the printed counts. Several sets have that
  size; counts cannot tell the authors' one.
* The softmax of Eq. 8 runs over the two branches, per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mmscconv import equations, ops
from mmscconv.layers import fused
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d, check_input, conv_window, padding_amounts, pair
from mmscconv.layers.channels import CRUChannels
from mmscconv.layers.conv_like import reset
from mmscconv.layers.intact import built, replaceable, undisturbed
from mmscconv.layers.no_weight import NoWeight
from mmscconv.layers.norms_first import NormsFirst
from mmscconv.layers.tracing import OneNode

if TYPE_CHECKING:
    from mmscconv.layers.sru import SRU

PARTS = ('squeeze_up', 'gwc', 'pwc1', 'norm_up', 'norm1', 'squeeze_low', 'pwc2', 'norm_low', 'norm2', 'pool')


class ChannelUnit(NormsFirst, OneNode, NoWeight):
    """Base class of CRU and its deploy form: the two branches of Eq. 5-9; None stands for a missing branch."""

    channels: CRUChannels
    in_channels: int
    pool: AlignedAvgPool2d
    squeeze_up: nn.Conv2d | None
    gwc: nn.Conv2d | None
    pwc1: nn.Conv2d | None
    norm_up: nn.BatchNorm2d | None
    norm1: nn.BatchNorm2d | None
    squeeze_low: nn.Conv2d | None
    pwc2: nn.Conv2d | None
    norm_low: nn.BatchNorm2d | None
    norm2: nn.BatchNorm2d | None

    @property
    def squeezes_alike(self) -> bool:
        """True if one grouped convolution of X^w can do both squeezes."""
        c = self.channels
        alike = 0 < c.alpha < 1 and c.up == c.low and c.squeezed_up == c.squeezed_low
        return alike and self.pool.is_identity

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless ``x`` is an input of this layer."""
        squeeze = self.squeeze_low if self.squeeze_up is None else self.squeeze_up
        # A squeeze of another class (quantized, for example) checks its dtypes itself.
        known = type(squeeze) is nn.Conv2d and undisturbed(squeeze)
        check_input(type(self).__name__, x, self.in_channels, cast('nn.Conv2d', squeeze).weight if known else None)

    def squeeze(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the squeezed branches of X^w, (N, C1, H, W), before their norms."""
        c = self.channels
        return self.squeeze_halves(*(ops.split_channels(x, (c.up, c.low)) if c.up and c.low else (x, x)))

    def squeeze_halves(self, up: Tensor, low: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the squeezed branches of the parts of X^w, (N, alpha*C1, H, W) and the rest, before their norms."""
        return (
            None if self.squeeze_up is None else self.squeeze_up(up),
            None if self.squeeze_low is None else self.squeeze_low(self.pool(low)),
        )

    def normed(self, x_up: Tensor | None, x_low: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return X_up and X_low: the branches that :meth:`squeeze` returns, behind their norms."""
        return (
            x_up if x_up is None or self.norm_up is None else self.norm_up(x_up),
            x_low if x_low is None or self.norm_low is None else self.norm_low(x_low),
        )

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return X_up, (N, u, H, W), and X_low, (N, l, H', W'), of X^w, (N, C1, H, W)."""
        return self.normed(*self.squeeze(x))

    def transform(self, x_up: Tensor | None, x_low: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return Y1 (Eq. 5) and Y2 (Eq. 6), (N, C2, H', W') each."""
        y1 = None if x_up is None else _y1(*self.transform_up(x_up))
        y2 = None if x_low is None else equations.y2(*self.transform_low(x_low))
        return y1, y2

    def fuse(self, y1: Tensor | None, y2: Tensor | None) -> Tensor:
        """Return Y (Eq. 7-9), or the only branch."""
        if y1 is not None and y2 is not None:
            return equations.fuse(y1, y2)
        return cast('Tensor', y2 if y1 is None else y1)

    def transform_up(self, x_up: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return M^G X_up and M^P1 X_up, whose sum is Y1 (Eq. 5), or the normed Y1 and None."""
        gwc, pwc1 = cast('nn.Conv2d', self.gwc), cast('nn.Conv2d', self.pwc1)
        # The pool runs first: its error explains a window larger than the input.
        pwc1_out, gwc_out = pwc1(self.pool(x_up)), gwc(x_up)
        return (gwc_out, pwc1_out) if self.norm1 is None else (self.norm1(equations.y1(gwc_out, pwc1_out)), None)

    def transform_low(self, x_low: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return M^P2 X_low and X_low, which side by side are Y2 (Eq. 6), or None and the normed Y2."""
        pwc2_out = None if self.pwc2 is None else self.pwc2(x_low)
        return (pwc2_out, x_low) if self.norm2 is None else (None, self.norm2(equations.y2(pwc2_out, x_low)))


@replaceable
class CRU(ChannelUnit):
    """Split, transform and fuse channels, in place of a k x k convolution.

    With u = alpha*C1/r and l = (1-alpha)*C1/r::

        X_up, X_low = squeeze_up(X[:alpha*C1]), squeeze_low(pool(X[alpha*C1:]))
        Y1 = gwc(X_up) + pwc1(pool(X_up))           # Eq. 5
        Y2 = cat(pwc2(X_low), X_low)                # Eq. 6
        beta = softmax over m of mean_HW(Y_m)       # Eq. 7, 8
        Y  = beta1 * Y1 + beta2 * Y2                # Eq. 9

    ``pool`` puts each 1x1 position in the middle of the GWC's window
    (:class:`~mmscconv.layers.AlignedAvgPool2d`); it is the identity at stride 1.
    Weights at the defaults, C1 = C2 = C: 1.8125 C^2 (Eq. 11).

    Args:
        in_channels: C1.
        out_channels: C2; None for C1.
        kernel_size, stride, dilation: Settings of the replaced convolution.
        padding: As ``nn.Conv2d``'s; None for ``dilation * (kernel_size - 1) // 2``.
        alpha: Split ratio in [0, 1]; at 0 and at 1 the one remaining branch is
            the output.
        squeeze_ratio: r.
        groups: g of the GWC.
        low_squeeze: ``'input'`` (Eq. 6 and 11): X_low has (1-alpha)*C1/r channels;
            ``'output'``: C2/r, which most of the paper's printed tables need.
            X_low has at most C2 channels; at C2, Y2 = X_low without ``pwc2``.
        inner_norm: Add ``norm_up`` and ``norm_low`` behind the squeezes, ``norm1``
            and ``norm2`` on Y1 and Y2 (BN), and biases on the squeezes and PWC2.
        backend: ``'plain'``, ``'native'`` or ``'triton'``
            (:mod:`mmscconv.ops.backend`); None for the fastest that runs.
        device, dtype: Device and dtype of the parameters, as ``nn.Conv2d``'s.

    Attributes:
        output_is_kept: Whether the next layer keeps its input for backward unchanged,
            as a norm does (:meth:`mark_output_kept`): a separate fuse kernel then
            keeps the output instead of Y1. False by default: an in-place activation
            may follow.

    Shape:
        Input (N, C1, H, W) or (C1, H, W); output as ``nn.Conv2d``'s with C2 channels.

    Raises:
        ValueError: Channels that cannot be divided, with the nearest settings that
            work; other arguments out of range; an input of another shape, or of
            another dtype than the weights outside of autocast.
        RuntimeError: A ``backend`` that cannot run on the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: Size2d = 3,
        stride: Size2d = 1,
        padding: Size2d | str | None = None,
        dilation: Size2d = 1,
        alpha: float = 0.5,
        squeeze_ratio: int = 2,
        groups: int = 2,
        low_squeeze: str = 'input',
        inner_norm: bool = False,
        backend: str | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.channels = CRUChannels(in_channels, out_channels, alpha, squeeze_ratio, groups, low_squeeze)
        self.channels.check()
        ops.check_backend(backend)
        self.backend = backend
        self.output_is_kept = False
        self.in_channels = in_channels
        self.out_channels = out_channels
        if padding is None:
            sizes, dilations = pair('kernel_size', kernel_size, 1), pair('dilation', dilation, 1)
            padding = tuple(d * (k - 1) // 2 for k, d in zip(sizes, dilations, strict=True))
        window = conv_window(kernel_size, stride, padding, dilation)
        self.kernel_size, self.stride, self.padding, self.dilation = window
        self.pool = AlignedAvgPool2d(*window)

        factory: dict[str, Any] = dict(device=device, dtype=dtype)
        self.squeeze_up = self.gwc = self.pwc1 = self.norm_up = self.norm1 = None
        if alpha > 0:
            u = self.channels.squeezed_up
            self.squeeze_up = nn.Conv2d(self.channels.up, u, 1, bias=inner_norm, **factory)
            self.gwc = nn.Conv2d(u, out_channels, *window, groups=groups, bias=False, **factory)
            self.pwc1 = nn.Conv2d(u, out_channels, 1, bias=False, **factory)
            if inner_norm:
                self.norm_up, self.norm1 = (nn.BatchNorm2d(c, **factory) for c in (u, out_channels))

        self.squeeze_low = self.pwc2 = self.norm_low = self.norm2 = None
        if alpha < 1:
            low = self.channels.squeezed_low
            self.squeeze_low = nn.Conv2d(self.channels.low, low, 1, bias=inner_norm, **factory)
            if low < out_channels:
                self.pwc2 = nn.Conv2d(low, out_channels - low, 1, bias=inner_norm, **factory)
            if inner_norm:
                self.norm_low, self.norm2 = (nn.BatchNorm2d(c, **factory) for c in (low, out_channels))

        self.gwc_window = None
        if self.gwc is not None and self.pwc2 is not None:
            (top, _), (left, _) = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
            self.gwc_window = ops.Window(groups, self.kernel_size, self.stride, (top, left), self.dilation)
        self.built = built(self, PARTS)

    def mark_output_kept(self) -> None:
        """Set ``output_is_kept``: the next layer keeps its input for backward and does not change it."""
        self.output_is_kept = True

    def reset_parameters(self) -> None:
        """Initialize convolutions and norms as PyTorch does by default."""
        for part in self.children():
            reset(part)

    @fused.replaced_by(fused.cru, fused.cru_of_halves)
    def forward(self, x: Tensor) -> Tensor:
        x_up, x_low = self.split(x)
        y1, y2 = self.transform(x_up, x_low)
        return self.fuse(y1, y2)

    def after(self, sru: SRU, x: Tensor) -> Tensor:
        """Return ``self(sru(x))``; kernels may do both at once."""
        self.check(x)
        y = fused.sru_then_cru(self, sru, x) if x.dim() == 4 else None
        return self(sru(x)) if y is None else y

    def extra_repr(self) -> str:
        c = self.channels
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding!r}, dilation={self.dilation}, alpha={c.alpha}, squeeze_ratio={c.squeeze_ratio}, '
            f'groups={c.groups}, low_squeeze={c.low_squeeze!r}'
        )


def _y1(gwc_out: Tensor, pwc1_out: Tensor | None) -> Tensor:
    return gwc_out if pwc1_out is None else equations.y1(gwc_out, pwc1_out)
