"""Checks of arguments and inputs that the layers share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmscconv import ops

Size2d = int | Sequence[int]
Device = torch.device | str | int | None
# Kernel size, stride, padding and dilation as nn.Conv2d keeps them; they determine the output's size.
ConvWindow = tuple[tuple[int, int], tuple[int, int], tuple[int, int] | str, tuple[int, int]]
LARGEST = 2**31 - 1  # the limit of every backend's index arithmetic


def checked_integer(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int; raise ValueError unless it is an integer in [``minimum``, 2^31 - 1]."""
    number = _index(value)
    if number is None or not minimum <= number <= LARGEST:
        raise ValueError(f'{name} must be an integer from {minimum} to {LARGEST}, got {name}={value!r}')
    return number


def check_real(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is a real number; infinity passes, NaN does not."""
    if not isinstance(value, Real) or value != value:
        raise ValueError(f'{name} must be a number, got {name}={value!r}')


def pair(name: str, value: Size2d, minimum: int) -> tuple[int, int]:
    """Return ``value`` as (height, width); raise ValueError unless it is one or two integers >= ``minimum``."""
    given = value if isinstance(value, Sequence) else (value, value)
    values = [v for v in map(_index, given) if v is not None and minimum <= v <= LARGEST]
    if len(given) != 2 or len(values) != 2:
        raise ValueError(f'{name} must be one or two integers from {minimum} to {LARGEST}, got {value!r}')
    return values[0], values[1]


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def conv_window(kernel_size: Size2d, stride: Size2d, padding: Size2d | str, dilation: Size2d) -> ConvWindow:
    """Return the arguments as pairs, the name of a ``padding`` unchanged; raise ValueError for values out of range."""
    return (
        pair('kernel_size', kernel_size, 1),
        pair('stride', stride, 1),
        padding if isinstance(padding, str) else pair('padding', padding, 0),
        pair('dilation', dilation, 1),
    )


def floor_product(ratio: float | Fraction, channels: int) -> int:
    """Return floor(ratio * channels), corrected for binary fractions: 0.29 * 100 is 28.999... in floats."""
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
        # For an even kernel torch puts the extra zero below and to the right.
        totals = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
        return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)
    height, width = pair('padding', padding, 0)
    return (height, height), (width, width)


def numeric_padding(
    padding: Size2d | str, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    """Return ``nn.Conv2d``'s ``padding`` argument as two integers, and the amounts for an ``F.pad`` before, or None.

    This avoids the operator of ``padding='same'``, ``aten::_convolution_mode``, which
    mmengine's FLOP counter counts as nothing. Only an even kernel extent needs
    ``F.pad``: its two sides get different numbers of zeros.
    """
    (top, bottom), (left, right) = padding_amounts(padding, kernel_size, stride, dilation)
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), (left, right, top, bottom)


def check_input(layer: str, x: Tensor, channels: int, weight: Tensor | None = None) -> None:
    """Raise ValueError unless ``x`` is floating-point, (N, channels, H, W) or (channels, H, W), with H, W >= 1.

    ``x`` must have the dtype of ``weight``, if given, except under autocast, which converts both. What is no tensor,
    such as a list of maps, raises TypeError.
    """
    if not hasattr(x, 'dim'):
        raise TypeError(f'{layer} expects one tensor (N, {channels}, H, W), got {type(x).__name__}')
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f'{layer} expects (N, {channels}, H, W) or ({channels}, H, W), got shape {tuple(x.shape)}')
    if x.shape[-1] < 1 or x.shape[-2] < 1:
        raise ValueError(f'{layer} needs at least one position, got shape {tuple(x.shape)}')
    if not x.is_floating_point():
        raise ValueError(f'{layer} computes with floating-point numbers, got {x.dtype}: convert with .float() before')
    if weight is not None and x.dtype != weight.dtype and not _under_autocast(x.device.type):
        raise ValueError(
            f'{layer} has weights of {weight.dtype} and got an input of {x.dtype}: '
            'convert one of them with .to(dtype), or use torch.autocast'
        )


def _under_autocast(device_type: str) -> bool:
    return ops.has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def check_window(
    size: Sequence[int],
    kernel_size: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int],
) -> None:
    """Raise ValueError if the window is larger than an input of ``size`` with ``padding`` zeros around it."""
    for length, k, zeros, d in zip(size, kernel_size, padding, dilation, strict=True):
        # If padding holds all but one position, every size fits; not reading it keeps dynamic export possible.
        if sum(zeros) < d * (k - 1) and length + sum(zeros) <= d * (k - 1):
            raise ValueError(
                f'window {kernel_size} with dilation {dilation} is larger than the input '
                f'{tuple(size)} with padding {padding}'
            )
