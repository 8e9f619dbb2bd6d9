"""TiedConv, "Tied Block Convolution: Leaner and Better CNNs with Shared Thinner Filters" (AAAI 2021)."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.layers.arguments import Device, Size2d
from mmscconv.layers.conv_like import Conv2dLike, check_dense
from mmscconv.ops import split_channels

CONV = 'conv.'  # prefix of the inner convolution's keys; state dicts omit it


class TiedConv(Conv2dLike):
    """One thin convolution, shared by ``blocks`` equal blocks of channels.

    Block b of the output is conv(block b of the input): a convolution with B
    groups whose filters are the same in each group. k*k*C1*C2/B^2 parameters,
    1/B of the work; B = 1 is ``nn.Conv2d``.

    The thin convolution is the child ``conv``, an ``nn.Conv2d`` that is called on
    all blocks: tools that count work or initialize weights find it there. The layer
    does not subclass ``nn.Conv2d``: a norm scales each of the C2 channels by its own
    factor and cannot be folded into shared filters. State dicts have the keys
    ``weight`` and ``bias``, as ``nn.Conv2d``'s do; ``named_parameters()`` has
    ``conv.weight`` and ``conv.bias``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, device, dtype:
            Of :class:`~mmscconv.layers.conv_like.Conv2dLike`.
        bias: Add a bias of C2/B numbers, shared by the blocks like the filters.
        blocks: B.

    Attributes:
        weight: (C2/B, C1/B, k, k), that of ``conv``.
        bias: (C2/B) or None, that of ``conv``.

    Shape:
        (N, C1, H, W) or (C1, H, W) to ``nn.Conv2d``'s output with C2 channels.

    Raises:
        ValueError: Channels that ``blocks`` does not divide.
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
        blocks: int = 2,
    ) -> None:
        check_dense('TiedConv', in_channels, out_channels, groups)
        if blocks < 1 or in_channels % blocks or out_channels % blocks:
            raise ValueError(
                f'TiedConv: in_channels={in_channels} and out_channels={out_channels} must be multiples of '
                f'blocks={blocks}'
            )
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False, padding_mode)
        del self._parameters['bias']  # the inner convolution adds it: see the property below
        self.blocks = blocks
        self.conv = nn.Conv2d(
            in_channels // blocks, out_channels // blocks, *self.inner_window, bias=bias, device=device, dtype=dtype
        )
        self._register_state_dict_hook(_drop_prefix)

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]  # others keep a parameter of their own
        return self.conv.bias

    def reset_parameters(self) -> None:
        """Initialize the weights anew, as ``nn.Conv2d`` does."""
        self.conv.reset_parameters()

    def _biased(self, x: Tensor) -> Tensor:
        # The inner convolution gets the blocks of channels as one batch, in any memory format.
        block = (self.in_channels // self.blocks,)
        y = self.conv(torch.cat(split_channels(x, block * self.blocks)))
        return torch.cat(y.unflatten(0, (self.blocks, x.shape[0])).unbind(), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The inner convolution loads under this layer's prefix, so that errors name the keys of the file.
        self.conv._load_from_state_dict(state_dict, prefix, *args)
        # torch then loads it once more as a child, with its own tensors; keys of modules inside it get the prefix.
        for name, tensor in chain(self.conv._parameters.items(), self.conv._buffers.items()):
            if tensor is not None:
                state_dict[f'{prefix}{CONV}{name}'] = tensor
        for name in self.conv._modules:
            for key in [key for key in state_dict if key.startswith(f'{prefix}{name}.')]:
                state_dict[f'{prefix}{CONV}{key.removeprefix(prefix)}'] = state_dict[key]

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, blocks={self.blocks}'


def _drop_prefix(layer: nn.Module, state_dict: dict[str, Any], prefix: str, _: object) -> None:
    for key in [key for key in state_dict if key.startswith(prefix + CONV)]:
        state_dict[prefix + key.removeprefix(prefix + CONV)] = state_dict.pop(key)
