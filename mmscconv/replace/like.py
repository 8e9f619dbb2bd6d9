"""Arguments for a layer that takes the place of a convolution."""

from __future__ import annotations

from typing import Any

from torch import nn


def arguments_like(conv: nn.Conv2d) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (in_channels, out_channels, kernel_size) and stride, padding and dilation by name, as ``conv`` has them.

    Groups are left out: every layer of this package is dense. The bias is the caller's to decide.
    """
    window = {'stride': conv.stride, 'padding': conv.padding, 'dilation': conv.dilation}
    return (conv.in_channels, conv.out_channels, conv.kernel_size), window
