"""The common part of all layers that replace a dense ``nn.Conv2d``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from mmscconv.layers.arguments import (
    ConvWindow,
    Device,
    Size2d,
    check_input,
    checked_integer,
    conv_window,
    numeric_padding,
)
from mmscconv.layers.initialization import apply_as_to_one
from mmscconv.layers.no_weight import NoWeight
from mmscconv.layers.tracing import OneNode

if TYPE_CHECKING:
    from typing_extensions import Self

PAD_LAYERS = {'reflect': 'nn.ReflectionPad2d', 'replicate': 'nn.ReplicationPad2d', 'circular': 'nn.CircularPad2d'}


class Conv2dLike(OneNode, NoWeight):
    """A module with ``nn.Conv2d``'s argument order and attributes; subclasses define :meth:`transform`.

    Unless a subclass has a ``weight``, reading it raises an AttributeError that
    names the way out, and ``hasattr`` is False.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As
            ``nn.Conv2d``'s.
        groups: Must be 1: these layers replace a dense convolution.
        bias: Add one bias per output channel at the end.
        padding_mode: Must be ``'zeros'``.
        device, dtype: Device and dtype of all parameters and buffers.

    Shape:
        Input (N, in_channels, H, W) or (in_channels, H, W); output as
        ``nn.Conv2d``'s.

    Raises:
        ValueError: ``groups`` other than 1, ``padding_mode`` other than ``'zeros'``,
            other arguments out of range, an input of another shape.
        torch.fx.proxy.TraceError: torch.fx traces the layer itself, or a model
            around a layer with forward hooks.
    """

    bias: nn.Parameter | None
    padding_mode = 'zeros'
    transposed = False
    output_padding = (0, 0)

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
    ) -> None:
        super().__init__()
        check_dense(type(self).__name__, in_channels, out_channels, groups)
        check_padding_mode(type(self).__name__, padding_mode)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size, self.stride, self.padding, self.dilation = conv_window(kernel_size, stride, padding, dilation)
        self.groups = 1
        self.register_parameter(
            'bias', nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        )

    @property
    def window(self) -> ConvWindow:
        """Kernel size, stride, padding and dilation, which determine the output's size."""
        return self.kernel_size, self.stride, self.padding, self.dilation

    @property
    def inner_window(self) -> ConvWindow:
        """:attr:`window` for inner convolutions; padding by equal zeros on both sides is given as numbers."""
        padding, pads = numeric_padding(self.padding, self.kernel_size, self.stride, self.dilation)
        return self.window if pads else (self.kernel_size, self.stride, padding, self.dilation)

    @property
    def multiplies(self) -> bool:
        """True if the output is a product of several convolutions' weights, whose scales multiply."""
        return False

    def apply(self, fn: Callable[[nn.Module], Any]) -> Self:
        """Call ``fn`` for all inner modules and the layer, as torch does.

        mmengine's initializers with a fixed scale or for this one layer treat it as one
        convolution (:func:`~mmscconv.layers.initialization.apply_as_to_one`).
        """
        return self if apply_as_to_one(self, fn, self.multiplies) else super().apply(fn)

    def reset_parameters(self) -> None:
        """Initialize all weights anew, each inner module by its own ``reset_parameters``; the bias becomes 0."""
        for child in self.children():
            reset(child)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def transform(self, x: Tensor) -> Tensor:
        """Return the output without the bias for a checked (N, in_channels, H, W)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return self.node(x)
        check_input(type(self).__name__, x, self.in_channels)
        # Not another call of the layer: it would run the layer's hooks twice.
        return self._biased(x) if x.dim() == 4 else self._biased(x.unsqueeze(0)).squeeze(0)

    def _biased(self, x: Tensor) -> Tensor:
        y = self.transform(x)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'padding={self.padding!r}, dilation={self.dilation}, bias={self.bias is not None}'
        )


def check_dense(layer: str, in_channels: int, out_channels: int, groups: int) -> None:
    """Raise ValueError unless the arguments are those of a dense convolution."""
    checked_integer('in_channels', in_channels)
    checked_integer('out_channels', out_channels)
    if groups != 1:
        raise ValueError(f'{layer} is dense: groups must be 1, got {groups}')


def check_padding_mode(layer: str, padding_mode: str) -> None:
    """Raise ValueError unless ``padding_mode`` is ``'zeros'``."""
    if padding_mode != 'zeros':
        pad = PAD_LAYERS.get(padding_mode, 'nn.ReflectionPad2d')
        raise ValueError(
            f'{layer} pads with zeros: padding_mode must be "zeros", got {padding_mode!r}; '
            f'for another mode, pad first, as in nn.Sequential({pad}(1), {layer}(..., padding=0))'
        )


def reset(module: nn.Module) -> None:
    """Call ``reset_parameters`` of ``module`` or, if it has none, of its outermost inner modules with one."""
    own = getattr(module, 'reset_parameters', None)
    if callable(own):
        own()
        return
    for child in module.children():
        reset(child)
