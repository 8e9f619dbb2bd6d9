"""The deploy form of CRU: inner norms and the norm behind the layer folded, for inference."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmscconv import ops
from mmscconv.layers.cru import CRU
from mmscconv.layers.sru import SRU


class DeployedCRU(nn.Module):
    """What a CRU in eval mode computes, and the BN behind it, without any norm.

    Both squeezes become one grouped convolution where their shapes allow it. The
    norm behind the layer scales and shifts the fused result and not the
    convolutions, for the fuse's weights come from means that it must not change.

    Args:
        cru: Left as it is.
        norm: BN behind the layer, or None.

    Shape:
        As the CRU's.

    Raises:
        ValueError: A norm that is no BN with running statistics.
    """

    def __init__(self, cru: CRU, norm: nn.Module | None = None) -> None:
        super().__init__()
        cru = copy.deepcopy(cru).eval()
        self.channels, self.pool, self.backend = cru.channels, cru.pool, cru.backend
        self.in_channels, self.out_channels = cru.in_channels, cru.out_channels

        self.gwc, self.pwc1 = fold_norm(cru.gwc, cru.norm1), fold_norm(cru.pwc1, cru.norm1)
        if cru.norm1 is not None:
            self.pwc1.bias = None  # the sum of both is shifted once, by the GWC
        self.squeeze_up = fold_norm(cru.squeeze_up, cru.norm_up)
        self.squeeze_low = fold_norm(cru.squeeze_low, cru.norm_low)
        self.pwc2, self.makes_all = cru.pwc2, False
        if cru.norm2 is not None and cru.pwc2 is None:
            self.squeeze_low = fold_norm(self.squeeze_low, cru.norm2)
        elif cru.norm2 is not None:
            # X_low is no longer the part of Y2 that costs nothing, so PWC2 makes all of it.
            self.pwc2, self.makes_all = fold_norm(_with_identity(cru.pwc2), cru.norm2), True
        # Without a bias, squeezing before pooling is the same as after it; then pooling takes both at once.
        self.alike = cru.squeezes_alike and (self.pool.is_identity or self.squeeze_up.bias is None)
        self.merged = _side_by_side(self.squeeze_up, self.squeeze_low) if self.alike and self.pool.is_identity else None

        scale, shift = (None, None) if norm is None else affine_of(norm)
        self.register_buffer('scale', scale)
        self.register_buffer('shift', shift)
        self.requires_grad_(False)

    def forward(self, x: Tensor, before: nn.Module | None = None) -> Tensor:
        """Return the CRU's output of (N, C1, H, W), or of ``before(x)``."""
        backend = ops.choose_backend(x, self.backend)
        if isinstance(before, SRU) and self.alike and ops.runs_on(x, self.backend):
            return self._fused(x, before)
        x_up, x_low = self._squeezed(x if before is None else before(x))
        first = second = made = None
        if x_up is not None:
            second, first = self.pwc1(self.pool(x_up)), self.gwc(x_up)
        if x_low is not None:
            made = None if self.pwc2 is None else self.pwc2(x_low)
            low, made = (made, None) if self.makes_all else (x_low, made)
            if x_up is not None:
                return ops.fuse(first, low, second, made, self.scale, self.shift, overwrite=True, backend=backend)
            y = low if made is None else torch.cat((made, low), dim=1)
        else:
            y = first + second
        if self.scale is None:
            return y
        return y * self.scale.to(y.dtype).view(-1, 1, 1) + self.shift.to(y.dtype).view(-1, 1, 1)

    def _fused(self, x: Tensor, sru: SRU) -> Tensor:
        """Return the output by the ops that reach over the 1x1 convolutions."""
        squeezes = (self.squeeze_up, self.squeeze_low)
        x_up, x_low = ops.sru_squeeze(x, *sru.op_arguments(x.dtype), *(s.weight for s in squeezes))
        if squeezes[0].bias is not None:
            x_up, x_low = (t + s.bias.view(-1, 1, 1) for t, s in zip((x_up, x_low), squeezes, strict=True))
        gwc, up, low = self.gwc(x_up), self.pool(x_up), self.pool(x_low)
        if self.pwc2 is None:
            return ops.fuse(gwc, low, self.pwc1(up), None, self.scale, self.shift, overwrite=True, backend='native')
        return ops.fuse_pointwise(
            gwc, up, low, self.pwc1.weight, self.pwc2.weight, self.pwc2.bias, self.scale, self.shift
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

    def extra_repr(self) -> str:
        return f'{self.in_channels}, {self.out_channels}'


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C) that a BN applies in eval mode.

    Raises:
        ValueError: A norm that is no BN with running statistics.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
        raise ValueError(f'only a BN with running statistics can be folded, got {norm}')
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
    shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
    return scale.detach(), shift.detach()


def fold_norm(conv: nn.Conv2d | None, norm: nn.Module | None) -> nn.Conv2d | None:
    """Return one convolution for ``conv`` and the BN behind it; ``conv`` itself where there is no norm."""
    if conv is None or norm is None:
        return conv
    affine_of(norm)  # for its error
    return fuse_conv_bn_eval(conv, norm)


def _side_by_side(up: nn.Conv2d, low: nn.Conv2d) -> nn.Conv2d:
    merged = nn.Conv2d(2 * up.in_channels, 2 * up.out_channels, 1, groups=2, bias=up.bias is not None)
    merged.weight = nn.Parameter(torch.cat((up.weight, low.weight)))
    if up.bias is not None:
        merged.bias = nn.Parameter(torch.cat((up.bias, low.bias)))
    return merged


def _with_identity(pwc2: nn.Conv2d) -> nn.Conv2d:
    """Return a 1x1 convolution that makes Y2 = cat(pwc2(x), x) of x."""
    channels = pwc2.in_channels
    identity = torch.eye(channels).to(pwc2.weight).view(channels, channels, 1, 1)
    whole = nn.Conv2d(channels, pwc2.out_channels + channels, 1)
    whole.weight = nn.Parameter(torch.cat((pwc2.weight, identity)))
    whole.bias = nn.Parameter(torch.cat((pwc2.bias, pwc2.bias.new_zeros(channels))))
    return whole.eval()
