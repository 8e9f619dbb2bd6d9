"""The deploy form of CRU: inner norms and the norm behind the layer folded, for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.layers.arguments import check_input
from mmscconv.layers.cru import CRU, side_by_side
from mmscconv.layers.folding import affine_of, fold_norm, with_identity
from mmscconv.layers.sru import SRU


class DeployedCRU(nn.Module):
    """What a CRU in eval mode computes, and the BN behind it, without any norm.

    Both squeezes become one grouped convolution where their shapes allow it. The
    norm behind the layer scales and shifts the fused result and not the
    convolutions, for the fuse's weights come from means that it must not change.

    Args:
        cru: Left as it is.
        norm: BN behind the layer, or None.
        relu: Whether a ReLU behind both belongs to it.

    Shape:
        As the CRU's.

    Raises:
        ValueError: A norm that is no BN with running statistics.
    """

    scale: Tensor | None
    shift: Tensor | None
    packed: Tensor | None
    packed_up: Tensor | None
    packed_low: Tensor | None

    def __init__(self, cru: CRU, norm: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        cru = copy.deepcopy(cru).eval()
        self.channels, self.pool, self.backend = cru.channels, cru.pool, cru.backend
        self.in_channels, self.out_channels, self.relu = cru.in_channels, cru.out_channels, relu

        self.gwc, self.pwc1 = fold_norm(cru.gwc, cru.norm1), fold_norm(cru.pwc1, cru.norm1)
        if self.pwc1 is not None and cru.norm1 is not None:
            self.pwc1.bias = None  # the sum of both is shifted once, by the GWC
        self.squeeze_up = fold_norm(cru.squeeze_up, cru.norm_up)
        self.squeeze_low = fold_norm(cru.squeeze_low, cru.norm_low)
        self.pwc2, self.makes_all = cru.pwc2, False
        if cru.pwc2 is None:
            self.squeeze_low = fold_norm(self.squeeze_low, cru.norm2)
        elif cru.norm2 is not None:
            # X_low is no longer the part of Y2 that costs nothing, so PWC2 makes all of it.
            whole = nn.Conv2d(cru.pwc2.in_channels, cru.out_channels, 1)
            weight, bias = with_identity(cru.pwc2.weight, cru.pwc2.bias)
            whole.weight, whole.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.pwc2, self.makes_all = fold_norm(whole.eval(), cru.norm2), True
        self.merged = None
        if self.squeeze_up is not None and self.squeeze_low is not None and cru.squeezes_alike:
            self.merged = _merged(self.squeeze_up, self.squeeze_low) if self.pool.is_identity else None

        scale, shift = (None, None) if norm is None else (t.detach() for t in affine_of(norm))
        self.register_buffer('scale', scale)
        self.register_buffer('shift', shift)
        for name in ('packed', 'packed_up', 'packed_low'):
            self.register_buffer(name, None, persistent=False)
        self.window = cru.gwc_window if self.pool.is_plain else None  # the kernel knows no other pools
        self.centre = self.window.centre if self.window is not None and self.pool.is_identity else None
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)
        self.requires_grad_(False)

    def pack(self) -> None:
        """Bring the weights into the order of the kernels, where these can run; after every change of them."""
        self.packed = self.packed_up = self.packed_low = None
        if self.window is None:
            return
        # A layer with a window has all of them.
        convs = (self.squeeze_up, self.squeeze_low, self.gwc, self.pwc1, self.pwc2)
        up, low, gwc, pwc1, pwc2 = weights = [conv.weight.detach() for conv in convs if conv is not None]
        if not ops.can_pack(*weights):
            return
        self.packed_up, self.packed_low = ops.packed(up), ops.packed(low)
        self.packed = ops.packed_transform(gwc, pwc1, pwc2, self.window.groups, self.centre)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeployedCRU:
        super()._apply(fn, recurse)
        self.pack()  # on the CPU again, or in fp32 again
        return self

    def forward(self, x: Tensor, before: nn.Module | None = None) -> Tensor:
        """Return the CRU's output of (N, C1, H, W), or of ``before(x)``."""
        squeeze = self.squeeze_up or self.squeeze_low
        check_input('CRU', x, self.in_channels, None if squeeze is None else squeeze.weight)
        if x.dim() == 3:
            return self(x.unsqueeze(0), before).squeeze(0)
        packed = self.packed
        if isinstance(before, SRU) and packed is not None and ops.runs_on(x, self.backend, packed):
            return ops.scconv(x, *self.op_arguments(before, x.dtype))
        y = self._composed(x, before, ops.choose_backend(x, self.backend))
        return F.relu(y, inplace=True) if self.relu else y

    def _composed(self, x: Tensor, before: nn.Module | None, backend: str) -> Tensor:
        """Return the output without the ReLU by one op after the other."""
        x_up, x_low = self._squeezed(x if before is None else before(x))
        if x_up is not None and x_low is not None:
            first, second = self._transform_up(x_up)
            made, low = self._transform_low(x_low)
            return ops.fuse(first, low, second, made, self.scale, self.shift, overwrite=True, backend=backend)
        if x_up is not None:
            first, second = self._transform_up(x_up)
            y = first + second
        else:
            assert x_low is not None  # alpha = 0
            made, low = self._transform_low(x_low)
            y = low if made is None else torch.cat((made, low), dim=1)
        if self.scale is None or self.shift is None:
            return y
        return y * self.scale.to(y.dtype).view(-1, 1, 1) + self.shift.to(y.dtype).view(-1, 1, 1)

    @property
    def is_one_op(self) -> bool:
        """Whether ops.scconv can compute it together with an SRU in front."""
        return self.packed is not None

    def op_arguments(self, sru: SRU, dtype: torch.dtype) -> tuple[Any, ...]:
        """Return the arguments of ops.scconv behind the input, for an input of ``dtype``."""
        c, window, squeeze_up, squeeze_low = self.channels, self.window, self.squeeze_up, self.squeeze_low
        gwc, pwc2, packed_up, packed_low, packed = self.gwc, self.pwc2, self.packed_up, self.packed_low, self.packed
        assert window is not None and squeeze_up is not None and squeeze_low is not None  # they are packed
        assert gwc is not None and pwc2 is not None
        assert packed_up is not None and packed_low is not None and packed is not None
        return (
            sru.op_arguments(dtype),
            (packed_up, packed_low, squeeze_up.bias, squeeze_low.bias),
            (packed, gwc.bias, pwc2.bias, self.scale, self.shift),
            (c.up, c.squeezed_up, c.squeezed_low, self.out_channels, pwc2.out_channels),
            window,
            self.centre,
            self.relu,
        )

    def _squeezed(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        c = self.channels
        if self.merged is not None:
            return self.merged(x).split(c.squeezed_up, dim=1)
        up, low = x.split((c.up, c.low), dim=1)
        return (
            None if self.squeeze_up is None else self.squeeze_up(up),
            None if self.squeeze_low is None else self.squeeze_low(self.pool(low)),
        )

    def _transform_up(self, x_up: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors whose sum is Y1."""
        gwc, pwc1 = self.gwc, self.pwc1
        assert gwc is not None and pwc1 is not None  # as squeeze_up is
        second, first = pwc1(self.pool(x_up)), gwc(x_up)  # the pool first, as in CRU
        return first, second

    def _transform_low(self, x_low: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return two tensors that make Y2 side by side, or None and Y2."""
        if self.pwc2 is None:
            return None, x_low
        made = self.pwc2(x_low)
        return (None, made) if self.makes_all else (made, x_low)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}'


def _pack_again(cru: DeployedCRU, _: object) -> None:
    cru.pack()


def _merged(up: nn.Conv2d, low: nn.Conv2d) -> nn.Conv2d:
    """Return one grouped convolution for two of the same shape."""
    merged = nn.Conv2d(2 * up.in_channels, 2 * up.out_channels, 1, groups=2, bias=False)
    weight, bias = side_by_side(up, low)
    merged.weight = nn.Parameter(weight)
    merged.bias = None if bias is None else nn.Parameter(bias)
    return merged
