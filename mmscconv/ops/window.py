"""The window of a convolution: its sizes, its centre tap, and the pool beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The settings of a convolution besides its channels; padding: above and left of the image."""

    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Kernel size, stride, padding and dilation, as the ops take them."""
        return (*self.kernel_size, *self.stride, *self.padding, *self.dilation)

    @property
    def centre(self) -> int | None:
        """The tap that sees the position of the output, or None."""
        return centre_of(self.numbers)


def window_of(groups: int, numbers: Sequence[int]) -> Window:
    """Return the window that has ``numbers``."""
    pairs = [(numbers[i], numbers[i + 1]) for i in (0, 2, 4, 6)]
    return Window(groups, *pairs)


def centre_of(window: Sequence[int]) -> int | None:
    """Return the tap that sees the position of the output, or None; ``window``: :attr:`Window.numbers`."""
    (height, width), stride, padding, dilation = (tuple(window[i : i + 2]) for i in (0, 2, 4, 6))
    (y, rest_y), (x, rest_x) = (divmod(p, d) for p, d in zip(padding, dilation, strict=True))
    if stride != (1, 1) or rest_y or rest_x or y >= height or x >= width:
        return None
    return y * width + x


def pooled_size(size: Sequence[int], pool: Sequence[int]) -> tuple[int, int]:
    """Return H' and W' behind a pool whose last windows may be cut off."""
    return -(-size[0] // pool[0]), -(-size[1] // pool[1])
