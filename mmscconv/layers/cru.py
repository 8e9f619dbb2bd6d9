"""CRU, the channel reconstruction unit: section 2.2, Eq. 5-9 of the SCConv paper (CVPR 2023).

What the paper leaves open, and the reading taken here:

* Stride: the upper squeeze runs at the input's size and the GWC is strided;
  PWC1 and the whole lower branch see the average-pooled input. The printed
  FLOPs need it so.
* Inner norms and biases: Eq. 5-9 have none (the default). ``inner_norm=True``
  adds the smallest set that gives the printed counts; which of several sets of
  the same size the authors have cannot be told from counts.
* The softmax of Eq. 8 runs over the two branches, per channel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.arguments import Device, Size2d, check_input, padding_amounts, pair
from mmscconv.layers.channels import CRUChannels
from mmscconv.layers.folding import folded, is_affine, update_statistics, with_identity
from mmscconv.layers.norms_first import NormsFirst
from mmscconv.layers.recompute import recomputed
from mmscconv.layers.sru import SRU


class CRU(NormsFirst):
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
        kernel_size, stride, dilation: Of the convolution that is replaced.
        padding: As ``nn.Conv2d``'s; None for ``dilation * (kernel_size - 1) // 2``.
        alpha: Split ratio in [0, 1]; at 0 and at 1 the one remaining branch is
            the output.
        squeeze_ratio: r.
        groups: g of the GWC.
        low_squeeze: ``'input'`` (Eq. 6 and 11): X_low has (1-alpha)*C1/r channels;
            ``'output'``: C2/r, which most of the paper's printed tables need.
            Where X_low has C2 channels there is no ``pwc2`` and Y2 = X_low; more
            than C2 are never made.
        inner_norm: Add ``norm_up`` and ``norm_low`` behind the squeezes, ``norm1``
            and ``norm2`` on Y1 and Y2 (BN), and biases on the squeezes and PWC2.
        backend: ``'plain'``, ``'native'`` or ``'triton'``
            (:mod:`mmscconv.ops.backend`); None for the fastest that runs.
        device, dtype: Of the weights.

    Attributes:
        output_is_kept: Set by :meth:`mark_output_kept`; False by default, for an
            in-place activation behind.

    Shape:
        Input (N, C1, H, W) or (C1, H, W); output as ``nn.Conv2d``'s with C2 channels.

    Raises:
        ValueError: Channels that do not come out, with the nearest settings that
            work; other arguments out of range; an input of another shape, or of
            another dtype than the weights outside of autocast.
        RuntimeError: A ``backend`` that cannot run on the input.
    """

    squeeze_up: nn.Conv2d | None
    gwc: nn.Conv2d | None
    pwc1: nn.Conv2d | None
    norm_up: nn.BatchNorm2d | None
    norm1: nn.BatchNorm2d | None
    squeeze_low: nn.Conv2d | None
    pwc2: nn.Conv2d | None
    norm_low: nn.BatchNorm2d | None
    norm2: nn.BatchNorm2d | None

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
        self.kernel_size = pair('kernel_size', kernel_size, 1)
        self.stride = pair('stride', stride, 1)
        self.dilation = pair('dilation', dilation, 1)
        if padding is None:
            padding = tuple(d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        self.padding = padding if isinstance(padding, str) else pair('padding', padding, 0)
        window = (self.kernel_size, self.stride, self.padding, self.dilation)
        self.pool = AlignedAvgPool2d(*window)
        factory: dict[str, Any] = dict(device=device, dtype=dtype)

        self.squeeze_up = self.gwc = self.pwc1 = self.norm_up = self.norm1 = None
        if alpha > 0:
            u = self.channels.squeezed_up
            self.squeeze_up = nn.Conv2d(self.channels.up, u, 1, bias=inner_norm, **factory)
            self.gwc = nn.Conv2d(u, out_channels, *window, groups=groups, bias=False, **factory)
            self.pwc1 = nn.Conv2d(u, out_channels, 1, bias=False, **factory)
            if inner_norm:
                self.norm_up, self.norm1 = nn.BatchNorm2d(u, **factory), nn.BatchNorm2d(out_channels, **factory)

        self.squeeze_low = self.pwc2 = self.norm_low = self.norm2 = None
        if alpha < 1:
            low = self.channels.squeezed_low
            self.squeeze_low = nn.Conv2d(self.channels.low, low, 1, bias=inner_norm, **factory)
            if low < out_channels:
                self.pwc2 = nn.Conv2d(low, out_channels - low, 1, bias=inner_norm, **factory)
            if inner_norm:
                self.norm_low, self.norm2 = nn.BatchNorm2d(low, **factory), nn.BatchNorm2d(out_channels, **factory)

        self.gwc_window = None
        if self.gwc is not None and self.pwc2 is not None:
            (top, _), (left, _) = padding_amounts(self.padding, self.kernel_size, self.stride, self.dilation)
            self.gwc_window = ops.Window(groups, self.kernel_size, self.stride, (top, left), self.dilation)

    def mark_output_kept(self) -> None:
        """Say that the layer behind keeps its input for backward and does not change it, as a norm does.

        Memory of the size of the output is saved where the fuse is done by itself.
        """
        self.output_is_kept = True

    @property
    def squeezes_alike(self) -> bool:
        """Whether both squeezes have the same shape, so that one grouped convolution can do both."""
        c = self.channels
        return 0 < c.alpha < 1 and c.up == c.low and c.squeezed_up == c.squeezed_low

    def forward(self, x: Tensor, before: nn.Module | None = None) -> Tensor:
        """Return Y of (N, C1, H, W), or of ``before(x)``, which is then recomputed in backward and not kept."""
        squeeze = self.squeeze_up or self.squeeze_low
        check_input('CRU', x, self.in_channels, None if squeeze is None else squeeze.weight)
        if x.dim() == 3:
            return self(x.unsqueeze(0), before).squeeze(0)
        backend = ops.choose_backend(x, self.backend)
        x_up, x_low = self._squeezed(x, before, backend)
        if x_up is None:
            assert x_low is not None  # alpha = 0
            return _cat(*self.transform_low(x_low))
        if x_low is None:
            return _sum(*self.transform_up(x_up))
        if backend == 'native' and self._transforms_at_once(x_up, x_low):
            return self._transformed(x_up, x_low)
        if backend == 'native' and self._norms_at_once(x_up, x_low):
            return self._normed(x_up, x_low)
        made, low = self.transform_low(x_low)
        first, second = self.transform_up(x_up)
        return ops.fuse(first, low, second, made, output_is_kept=self.output_is_kept, backend=backend)

    def _squeezed(self, x: Tensor, before: nn.Module | None, backend: str) -> tuple[Tensor | None, Tensor | None]:
        """Return the squeezed branches of ``before(x)``, normed; where kernels run, nothing before is kept."""
        if isinstance(before, SRU) and self._squeezes_at_once(x, before, backend):
            squeeze_up, squeeze_low = self.squeeze_up, self.squeeze_low
            assert squeeze_up is not None and squeeze_low is not None
            up, low = (squeeze_up.weight, squeeze_up.bias), (squeeze_low.weight, squeeze_low.bias)
            if _folds(self.norm_up) and _folds(self.norm_low):
                return squeeze_reconstructed(
                    x, before, folded(*up, self.norm_up), folded(*low, self.norm_low), self.pool
                )
            raw_up, raw_low = squeeze_reconstructed(x, before, up, low, self.pool)
            return _norm(self.norm_up, raw_up), _norm(self.norm_low, raw_low)

        def squeeze(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
            return self.squeeze(x if before is None else before(x), merged=backend != 'plain')

        kept_out = before is not None and backend != 'plain'
        branches = recomputed(squeeze, x) if kept_out else squeeze(x)
        norms = self.norm_up, self.norm_low
        x_up, x_low = (None if t is None else _norm(norm, t) for t, norm in zip(branches, norms, strict=True))
        return x_up, x_low

    def _squeezes_at_once(self, x: Tensor, sru: SRU, backend: str) -> bool:
        """Whether one kernel can do the SRU and both squeezes."""
        squeeze_up, squeeze_low = self.squeeze_up, self.squeeze_low
        if {backend, sru.backend or backend} != {'native'} or squeeze_up is None or squeeze_low is None:
            return False
        if _hooked(sru, squeeze_up, squeeze_low) or not ops.fits(x, squeeze_up.weight, squeeze_low.weight):
            return False
        return not torch.is_autocast_enabled('cpu')

    def _transforms_at_once(self, x_up: Tensor, x_low: Tensor) -> bool:
        """Whether one kernel can do GWC, PWC1, PWC2, norms in eval mode and fuse."""
        gwc, pwc1, pwc2 = self.gwc, self.pwc1, self.pwc2
        if gwc is None or pwc1 is None or pwc2 is None or _hooked(gwc, pwc1, pwc2):
            return False
        if not _folds(self.norm1) or not _folds(self.norm2):
            return False
        weights = gwc.weight, pwc1.weight, pwc2.weight
        return ops.fits(x_up, *weights) and ops.fits(x_low) and not torch.is_autocast_enabled('cpu')

    def _transformed(self, x_up: Tensor, x_low: Tensor) -> Tensor:
        assert self.gwc_window is not None and self.gwc is not None and self.pwc1 is not None and self.pwc2 is not None
        up = None if self.pool.is_identity and self.gwc_window.centre is not None else self.pool(x_up)
        gwc, bias1 = folded(self.gwc.weight, None, self.norm1)
        pwc1, pwc2, bias2 = self.pwc1.weight, self.pwc2.weight, self.pwc2.bias
        if self.norm1 is not None:
            pwc1 = folded(pwc1, None, self.norm1)[0]  # the sum of both is shifted once
        if self.norm2 is not None:
            # X_low is then no longer the part of Y2 that costs nothing, so PWC2 makes all of it.
            pwc2, bias2 = folded(*with_identity(pwc2, bias2), self.norm2)
        return ops.transform_fuse(x_up, up, x_low, (gwc, pwc1, pwc2), self.gwc_window, (bias1, bias2))

    def _norms_at_once(self, x_up: Tensor, x_low: Tensor) -> bool:
        """Whether one kernel can do ``norm1``, ``norm2`` with the batch's statistics, and fuse."""
        norms = self.norm1, self.norm2
        if self.pwc2 is None or _hooked(*norms) or torch.is_autocast_enabled('cpu'):
            return False
        if any(type(norm) is not nn.BatchNorm2d or is_affine(norm) for norm in norms):
            return False
        # Of one value there is no variance: BN says so.
        return ops.fits(x_up, self.pwc2.weight) and ops.fits(x_low) and x_low[:, 0].numel() > 1

    def _normed(self, x_up: Tensor, x_low: Tensor) -> Tensor:
        gwc, pwc1, pwc2, norm1, norm2 = self.gwc, self.pwc1, self.pwc2, self.norm1, self.norm2
        assert gwc is not None and pwc1 is not None and pwc2 is not None and norm1 is not None and norm2 is not None
        second, first = pwc1(self.pool(x_up)), gwc(x_up)  # the pool first, as in transform_up
        settings = ((norm.weight, norm.bias, norm.eps) for norm in (norm1, norm2))
        y, mean, variance = ops.norm_fuse(first + second, pwc2(x_low), x_low, *settings)
        for norm, mu, v in zip((norm1, norm2), mean, variance, strict=True):
            update_statistics(norm, mu, v, y[:, 0].numel())
        return y

    def squeeze(self, x: Tensor, merged: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """Return the squeezed branches of (N, C1, H, W), before their norms; None for one that is not there.

        Args:
            merged: Compute both by one grouped convolution where they have the same
                shape and nobody looks at them: the same result, faster.
        """
        c = self.channels
        squeeze_up, squeeze_low = self.squeeze_up, self.squeeze_low
        if squeeze_up is None or squeeze_low is None:
            # The one branch takes all of x.
            up = None if squeeze_up is None else squeeze_up(x)
            return up, None if squeeze_low is None else squeeze_low(self.pool(x))
        if merged and self.squeezes_alike and self.pool.is_identity and not _hooked(squeeze_up, squeeze_low):
            weight, bias = side_by_side(squeeze_up, squeeze_low)
            return F.conv2d(x, weight, bias, groups=2).split(c.squeezed_up, dim=1)
        up, low = x.split((c.up, c.low), dim=1)
        return squeeze_up(up), squeeze_low(self.pool(low))

    def transform_up(self, x_up: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return two tensors whose sum is Y1 (Eq. 5), or Y1 and None, of the squeezed and normed (N, u, H, W)."""
        gwc, pwc1 = self.gwc, self.pwc1
        assert gwc is not None and pwc1 is not None  # as squeeze_up is
        # The pool comes first: it says in words that a window is larger than the input.
        second, first = pwc1(self.pool(x_up)), gwc(x_up)
        return (first, second) if self.norm1 is None else (self.norm1(first + second), None)

    def transform_low(self, x_low: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return two tensors that make Y2 (Eq. 6), or None and Y2, of the squeezed and normed (N, l, H', W')."""
        made = None if self.pwc2 is None else self.pwc2(x_low)
        if self.norm2 is None:
            return made, x_low
        return None, self.norm2(_cat(made, x_low))

    def extra_repr(self) -> str:
        c = self.channels
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding!r}, dilation={self.dilation}, alpha={c.alpha}, squeeze_ratio={c.squeeze_ratio}, '
            f'groups={c.groups}, low_squeeze={c.low_squeeze!r}'
        )


def squeeze_reconstructed(
    x: Tensor,
    sru: SRU,
    up: tuple[Tensor, Tensor | None],
    low: tuple[Tensor, Tensor | None],
    pool: AlignedAvgPool2d,
) -> tuple[Tensor, Tensor]:
    """Return X_up and the pooled X_low of ``sru(x)`` by one kernel.

    Args:
        x: (N, C, H, W).
        sru: What reconstructs it.
        up, low: Weight and bias of the squeezes.
        pool: Of X_low; the kernel does it where it is a plain one and no gradients are recorded.
    """
    size = (1, 1) if torch.is_grad_enabled() or not pool.is_plain else pool.stride
    # A plain pool leaves a constant as it is; others have windows with nothing in them.
    early = low[1] if pool.is_plain else None
    arguments = sru.op_arguments(x.dtype)
    x_up, x_low = ops.sru_squeeze(x, arguments, up[0], low[0], (up[1], early), size)
    if size != pool.stride or not pool.is_plain:
        x_low = pool(x_low)
    return x_up, x_low if low[1] is None or early is not None else x_low + low[1].view(-1, 1, 1)


def side_by_side(up: nn.Conv2d, low: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of one convolution in two groups for two of the same shape."""
    weight = torch.cat((up.weight, low.weight))
    return weight, None if up.bias is None or low.bias is None else torch.cat((up.bias, low.bias))


def _hooked(*modules: nn.Module | None) -> bool:
    """Whether somebody looks at what goes in or out of a module, which then has to be called."""
    return any(m is not None and bool(m._forward_hooks or m._forward_pre_hooks) for m in modules)


def _folds(norm: nn.Module | None) -> bool:
    """Whether a norm may be folded into the convolution in front of it, or there is none."""
    return is_affine(norm) and not _hooked(norm)


def _norm(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _sum(first: Tensor, second: Tensor | None) -> Tensor:
    return first if second is None else first + second


def _cat(made: Tensor | None, low: Tensor) -> Tensor:
    return low if made is None else torch.cat((made, low), dim=1)
