"""Checks of arguments and inputs that the layers share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor

Size2d = int | Sequence[int]
# Kernel size, stride, padding and dilation as nn.Conv2d keeps them: what decides the output's size.
Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int] | str, tuple[int, int]]


def pair(name: str, value: Size2d, minimum: int) -> tuple[int, int]:
    """Return ``value`` as (height, width); ValueError if it is not one or two integers >= ``minimum``."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v >= minimum for v in values):
        raise ValueError(f'{name} must be one or two integers >= {minimum}, got {value!r}')
    return values


def window_of(kernel_size: Size2d, stride: Size2d, padding: Size2d | str, dilation: Size2d) -> Window:
    """Return the arguments as pairs, a ``padding`` given by name as it is; ValueError for one that is out of range."""
    return (
        pair('kernel_size', kernel_size, 1),
        pair('stride', stride, 1),
        padding if isinstance(padding, str) else pair('padding', padding, 0),
        pair('dilation', dilation, 1),
    )


def share(ratio: float | Fraction, channels: int) -> int:
    """Return floor(ratio * channels); the small term forgives binary fractions: 0.29 * 100 is 28.999..."""
    return int(ratio * channels + 1e-6)


def padding_amounts(
    padding: Size2d | str, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return ``nn.Conv2d``'s ``padding`` argument as ((top, bottom), (left, right)) zeros."""
    if isinstance(padding, str):
        if padding == 'valid':
            return (0, 0), (0, 0)
        if padding != 'same':
            raise ValueError(f"padding must be an integer, a pair, 'same' or 'valid', got {padding!r}")
        if stride != (1, 1):
            raise ValueError(f"padding='same' needs stride 1, got stride {stride}")
        # torch puts the odd zero of an even kernel behind the image.
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    height, width = pair('padding', padding, 0)
    return (height, height), (width, width)


def check_input(layer: str, x: Tensor, channels: int) -> None:
    """Raise ValueError unless ``x`` is (N, channels, H, W) or (channels, H, W)."""
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f'{layer} expects (N, {channels}, H, W) or ({channels}, H, W), got shape {tuple(x.shape)}')
