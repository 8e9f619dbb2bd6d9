"""FLOPs of the ops that convolve, for torch's FlopCounterMode: those of their plain forms.

A counter around the forward pass sees the plain form itself. One around backward alone sees the ops.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import torch

COUNTER = 'torch.utils.flop_counter'
Shape = Sequence[int]


def register_formulas() -> None:
    """Tell torch's counter the ops' FLOPs, if the program has imported it: its import brings Triton along."""
    if COUNTER in sys.modules:
        _register()


@functools.cache
def _register() -> None:
    formulas = {
        'sru_squeeze': _sru_squeeze,
        'sru_squeeze_backward': _sru_squeeze_backward,
        'transform_fuse': _transform_fuse,
        'transform_fuse_backward': _transform_fuse_backward,
        'scconv': _scconv,
    }
    for op, formula in formulas.items():
        sys.modules[COUNTER].register_flop_formula(getattr(torch.ops.mmscconv, op))(formula)


def _convolution(out: Shape, *weights: Shape) -> int:
    """Return the FLOPs of convolutions with an output of N, H and W of ``out`` each; a multiply-add is two."""
    return 2 * out[0] * prod(out[2:]) * sum(map(prod, weights))


def _sru_squeeze(*arguments: Any, out_shape: Sequence[Shape], **_: Any) -> int:
    up, low = arguments[7:9]
    return _convolution(out_shape[0], up) + _convolution(out_shape[1], low)


def _sru_squeeze_backward(grad_up: Shape, grad_low: Shape, *arguments: Any, **_: Any) -> int:
    up, low = arguments[5:7]
    return 2 * (_convolution(grad_up, up) + _convolution(grad_low, low))


def _transform_fuse(*arguments: Any, out_shape: Sequence[Shape], **_: Any) -> int:
    return _convolution(out_shape[0], *arguments[3:6])


def _transform_fuse_backward(grad: Shape, *arguments: Any, **_: Any) -> int:
    gwc, pwc1, pwc2 = arguments[3:6]
    groups = arguments[9]
    # The gradient of a grouped weight is counted by torch as that of a dense one.
    return 2 * _convolution(grad, pwc1, pwc2) + (1 + groups) * _convolution(grad, gwc)


def _scconv(x: Shape, *arguments: Any, out_shape: Shape, **_: Any) -> int:
    (cut, u, low, c2, pwc2_channels), groups, window = arguments[8:11]
    behind = (low, x[1] - cut), (c2, u // groups, *window[:2]), (c2, u), (pwc2_channels, low)
    return _convolution(x, (u, cut)) + _convolution(out_shape, *behind)
