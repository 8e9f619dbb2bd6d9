"""The deploy form of CRU: inner norms and the norm behind the layer folded, for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn

from mmscconv import equations, ops
from mmscconv.layers import fused
from mmscconv.layers.cru import CRU, PARTS, ChannelUnit
from mmscconv.layers.folding import affine_of, fold_norm, with_identity
from mmscconv.layers.intact import built, change_of, intact, replaceable

if TYPE_CHECKING:
    from mmscconv.layers.sru import SRU

CONVOLUTIONS = ('squeeze_up', 'squeeze_low', 'gwc', 'pwc1', 'pwc2')
# State-dict keys of earlier deploy forms: both squeezes as one convolution.
EARLIER_KEYS = ('merged.weight', 'merged.bias')


@replaceable
class DeployedCRU(ChannelUnit):
    """A CRU and the BN behind it in eval mode, with all norms folded.

    The norm behind the layer scales and shifts the fused result, not the
    convolutions: the fuse's weights come from means that it must not change. The
    kernels read packed copies of the weights (``packed``); weights that changed
    since are packed anew at each call.

    Args:
        cru: Stays unchanged.
        norm: BN behind the layer, or None.
        relu: Whether to end in a ReLU.

    Shape:
        As the CRU's.

    Raises:
        ValueError: A norm other than a BN with running statistics; a module of
            ``cru`` that was replaced, hooked or parametrized.
    """

    scale: Tensor | None
    shift: Tensor | None
    packed: Tensor | None
    packed_up: Tensor | None
    packed_low: Tensor | None

    def __init__(self, cru: CRU, norm: nn.Module | None = None, relu: bool = False) -> None:
        super().__init__()
        check_foldable(cru)
        cru = copy.deepcopy(cru).eval()
        self.channels, self.pool, self.backend = cru.channels, cru.pool, cru.backend
        self.in_channels, self.out_channels, self.relu = cru.in_channels, cru.out_channels, relu
        self.norm_up = self.norm_low = self.norm1 = self.norm2 = None

        self.gwc, self.pwc1 = fold_norm(cru.gwc, cru.norm1), fold_norm(cru.pwc1, cru.norm1)
        if self.pwc1 is not None and cru.norm1 is not None:
            self.pwc1.bias = None  # the sum of both is shifted once, by the GWC
        self.squeeze_up = fold_norm(cru.squeeze_up, cru.norm_up)
        self.squeeze_low = fold_norm(cru.squeeze_low, cru.norm_low)
        self.pwc2, self.makes_all = cru.pwc2, False
        if cru.pwc2 is None:
            self.squeeze_low = fold_norm(self.squeeze_low, cru.norm2)
        elif cru.norm2 is not None:
            # The norm also changes the X_low part of Y2: PWC2 has to compute all of Y2.
            full_pwc2 = nn.Conv2d(cru.pwc2.in_channels, cru.out_channels, 1)
            weight, bias = with_identity(cru.pwc2.weight, cru.pwc2.bias)
            full_pwc2.weight, full_pwc2.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.pwc2, self.makes_all = fold_norm(full_pwc2.eval(), cru.norm2), True

        scale, shift = (None, None) if norm is None else (t.detach() for t in affine_of(norm))
        self.register_buffer('scale', scale)
        self.register_buffer('shift', shift)
        for name in ('packed', 'packed_up', 'packed_low'):
            self.register_buffer(name, None, persistent=False)
        self.built = built(self, PARTS)
        self.window = cru.gwc_window if self.pool.is_plain else None  # the kernel has no other pool
        self.centre = self.window.centre if self.window is not None and self.pool.is_identity else None
        self.pack()
        self.register_load_state_dict_post_hook(_pack_again)
        self.requires_grad_(False)
        self.eval()

    def append(self, norm: nn.Module | None, relu: bool) -> None:
        """Fold the BN behind the deploy form, too, and append a ReLU.

        Raises:
            ValueError: A norm other than a BN with running statistics, or behind a ReLU.
        """
        if norm is not None:
            if self.relu:
                raise ValueError('the deploy form ends in a ReLU: no norm behind it can be folded')
            scale, shift = (t.detach() for t in affine_of(norm))
            self.shift = shift if self.shift is None else self.shift * scale + shift
            self.scale = scale if self.scale is None else self.scale * scale
        self.relu = self.relu or relu

    def pack(self) -> None:
        """Pack the weights for the kernels, if these can run."""
        self.packed = self.packed_up = self.packed_low = None
        self.fingerprint = 0
        if self.window is None or not intact(self, *CONVOLUTIONS):
            return
        up, low, gwc, pwc1, pwc2 = weights = self._weights()
        if not ops.can_pack(*weights):
            return
        self.packed_up, self.packed_low = ops.packed(up), ops.packed(low)
        self.packed = ops.packed_transform(gwc, pwc1, pwc2, self.window.groups, self.centre)
        self.fingerprint = ops.fingerprint(weights)

    def weights_and_packed_fingerprint(self) -> tuple[list[Tensor], int]:
        """Return the weights of now, and the fingerprint of those that were packed."""
        return self._weights(), self.fingerprint

    def _weights(self) -> list[Tensor]:
        # A layer with a window has all these convolutions.
        return [cast('nn.Conv2d', getattr(self, name)).weight.detach() for name in CONVOLUTIONS]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeployedCRU:
        super()._apply(fn, recurse)
        self.pack()  # device or dtype may have changed
        return self

    @fused.replaced_by(fused.deployed, fused.cru_of_halves)
    def forward(self, x: Tensor) -> Tensor:
        x_up, x_low = self.split(x)
        y = self.fuse(*self.transform(x_up, x_low))
        if self.scale is not None and self.shift is not None:
            scale, shift = (equations.per_channel(t.to(y.dtype)) for t in (self.scale, self.shift))
            y = y * scale + shift
        return F.relu(y) if self.relu else y

    def after(self, sru: SRU, x: Tensor) -> Tensor:
        """Return ``self(sru(x))``; a kernel may do both at once."""
        self.check(x)
        y = fused.sru_then_deployed(self, sru, x) if x.dim() == 4 else None
        return self(sru(x)) if y is None else y

    def transform_low(self, x_low: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.pwc2 is None:
            return None, x_low
        pwc2_out = self.pwc2(x_low)
        return (None, pwc2_out) if self.makes_all else (pwc2_out, x_low)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in EARLIER_KEYS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}'


def check_foldable(cru: CRU) -> None:
    """Raise ValueError unless ``cru`` and its modules are those of its class, as built, without hooks."""
    reason = change_of(cru)
    if reason is not None:
        raise ValueError(
            f'the CRU cannot be brought into deploy form, {reason}. '
            'Merge adapters, and remove hooks and parametrizations first; or leave this layer as it is'
        )


def _pack_again(cru: DeployedCRU, _: object) -> None:
    cru.pack()
