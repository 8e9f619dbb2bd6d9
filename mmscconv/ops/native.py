"""The CPU kernels as functions of tensors.

They work in fp32 on NCHW or channels-last data. The SRU and the fuse alone convert fp16 and bf16
maps on the way in and out; the joined kernels read and write bf16 maps themselves, block by block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops.compiled import call, multiplies_in_tiles
from mmscconv.ops.fitting import (
    check,
    check_fuse,
    check_fuse_backward,
    check_scconv,
    check_sru,
    check_sru_backward,
    check_sru_squeeze,
    check_sru_squeeze_backward,
    check_transform_fuse,
    has,
)
from mmscconv.ops.layout import as_dense, as_rows, empty, layout_of, row_stride
from mmscconv.ops.packing import (
    bf16_as_fp32,
    fingerprint,
    packed,
    packed_transform,
    transform_rows,
    weights_of_rows,
)
from mmscconv.ops.window import centre_of, pooled_size


def _is_bf16(x: Tensor) -> bool:
    """Return whether ``x`` and the other maps of a call are bfloat16, which the kernels convert in the caches."""
    return x.dtype is torch.bfloat16


def _map_kind(x: Tensor) -> int:
    """Return ``bf16`` of the kernels whose products AMX does where it is there: 0, 1 or, for AMX, 2."""
    return (2 if multiplies_in_tiles() else 1) if _is_bf16(x) else 0


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def sru_forward(
    x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    check_sru(x, scale, shift, num_groups)
    layout = layout_of(x)
    values, scale, shift = as_dense(x.float(), layout), scale.contiguous(), shift.contiguous()
    out = torch.empty_like(values)
    mean, rstd = (empty(len(x), num_groups) for _ in range(2))
    call(
        'sru_forward', values, scale, shift, *_size(x), layout is torch.channels_last, num_groups, eps, threshold,
        hard, torch.get_num_threads(), out, mean, rstd,
    )  # fmt: skip
    return out.to(x.dtype), mean, rstd


def sru_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    check_sru_backward(grad, x, scale, shift, mean, rstd)
    layout = layout_of(x)
    values, upstream = as_dense(x.float(), layout), as_dense(grad.float(), layout)
    scale, shift = scale.contiguous(), shift.contiguous()
    grad_x = torch.empty_like(values)
    grad_scale, grad_shift = empty(2, x.shape[1], dtype=torch.float64)
    call(
        'sru_backward', upstream, values, scale, shift, mean, rstd, *_size(x), layout is torch.channels_last,
        mean.shape[1], threshold, hard, torch.get_num_threads(), grad_x, grad_scale, grad_shift,
    )  # fmt: skip
    return grad_x.to(x.dtype), grad_scale.float(), grad_shift.float()


def fuse_forward(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None,
    pwc2_out: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse(y1, x_low, y1_addend, pwc2_out, scale, shift)
    layout = layout_of(y1)
    y1_ = as_dense(y1.float(), layout)
    y1_addend_, pwc2_out_ = (None if t is None else as_dense(t.float(), layout) for t in (y1_addend, pwc2_out))
    x_low_ = as_rows(x_low.float(), layout)
    out = y1_ if overwrite else torch.empty_like(y1_)
    beta1 = empty(*y1.shape[:2])
    call(
        'fuse_forward', y1_, y1_addend_, pwc2_out_, x_low_, scale, shift, *_size(y1), layout is torch.channels_last,
        *_rows(x_low_, layout), torch.get_num_threads(), out, beta1,
    )  # fmt: skip
    return out.to(y1.dtype), beta1


def fuse_backward(
    grad: Tensor, reference: Tensor, is_output: bool, x_low: Tensor, pwc2_out: Tensor | None, beta1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    check_fuse_backward(grad, reference, x_low, pwc2_out, beta1)
    layout = layout_of(reference)
    grad_, reference_ = (as_dense(t.float(), layout) for t in (grad, reference))
    pwc2_out_, x_low_ = None if pwc2_out is None else as_dense(pwc2_out.float(), layout), as_rows(x_low.float(), layout)
    grad1 = torch.empty_like(reference_)
    n, c, h, w = grad.shape
    grad_pwc2_out, grad_x_low = (
        empty(n, channels, h, w, layout=layout) for channels in (c - x_low.shape[1], x_low.shape[1])
    )
    call(
        'fuse_backward', grad_, reference_, is_output, pwc2_out_, x_low_, beta1, *_size(grad),
        layout is torch.channels_last, *_rows(x_low_, layout), torch.get_num_threads(), torch.empty_like(beta1), grad1,
        grad_pwc2_out, grad_x_low,
    )  # fmt: skip
    return grad1.to(grad.dtype), grad_pwc2_out.to(grad.dtype), grad_x_low.to(grad.dtype)


def _rows(low: Tensor, layout: torch.memory_format) -> tuple[int, int, int]:
    """Return the channels of ``low``, and its strides from sample to sample and from row to row."""
    return low.shape[1], low.stride(0), row_stride(low, layout)


def sru_squeeze(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    up: Tensor,
    low: Tensor,
    bias_up: Tensor | None,
    bias_low: Tensor | None,
    pool: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru_squeeze.sru_squeeze`; also returns means and inverse deviations, (N, groups)."""
    check_sru_squeeze(x, scale, shift, num_groups, up, low, bias_up, bias_low)
    values = as_dense(x, torch.channels_last)
    n, c, h, w = x.shape
    x_up, x_low = (
        empty(n, len(weight), *size, dtype=x.dtype, layout=torch.channels_last)
        for weight, size in ((up, (h, w)), (low, pooled_size((h, w), pool)))
    )
    mean, rstd = (empty(n, num_groups) for _ in range(2))
    call(
        'sru_squeeze', values, scale, shift, packed(up), packed(low), bias_up, bias_low, n, c, h, w, num_groups, eps,
        threshold, hard, up.shape[1], len(up), len(low), *pool, _map_kind(x), torch.get_num_threads(), x_up, x_low,
        mean, rstd,
    )  # fmt: skip
    return x_up, x_low, mean, rstd


def sru_squeeze_backward(
    grad_up: Tensor,
    grad_low: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    up: Tensor,
    low: Tensor,
    threshold: float,
    hard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru_squeeze.sru_squeeze`."""
    check_sru_squeeze_backward(grad_up, grad_low, x, scale, shift, mean, rstd, up, low)
    grad_up, grad_low, values = (as_dense(t, torch.channels_last) for t in (grad_up, grad_low, x))
    grad_x = torch.empty_like(values)
    grad_scale, grad_shift = empty(2, x.shape[1], dtype=torch.float64)
    grad_weights = [empty(*weight.shape) for weight in (up, low)]
    call(
        'sru_squeeze_backward', grad_up, grad_low, values, scale, shift, mean, rstd, packed(up.flatten(1).T),
        packed(low.flatten(1).T), *_size(x), mean.shape[1], threshold, hard, up.shape[1], len(up), len(low),
        _is_bf16(x), torch.get_num_threads(), grad_x, grad_scale, grad_shift, *grad_weights,
    )  # fmt: skip
    return grad_x, grad_scale.float(), grad_shift.float(), grad_weights[0], grad_weights[1]


def transform_fuse(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    gwc: Tensor,
    pwc1: Tensor,
    pwc2: Tensor,
    bias1: Tensor | None,
    bias2: Tensor | None,
    groups: int,
    window: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.transform_fuse.transform_fuse`; also returns beta1, (N, C)."""
    check_transform_fuse(x_up, up, low, gwc, pwc1, pwc2, bias1, bias2, groups, window)
    centre = _centre(up, low, window)
    x_up, up, low = _inputs(x_up, up, low)
    out = empty(len(low), len(gwc), *low.shape[2:], dtype=low.dtype, layout=torch.channels_last)
    beta1 = empty(len(low), len(gwc))
    channels = x_up.shape[1], low.shape[1], len(gwc), len(pwc2)
    call(
        'transform_fuse', x_up, up, low, packed_transform(gwc, pwc1, pwc2, groups, centre), bias1, bias2, None, None,
        _geometry(x_up, channels, groups, window, low.shape[2:], centre), False, _map_kind(low),
        torch.get_num_threads(), out, beta1,
    )  # fmt: skip
    return out, beta1


def scconv(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    eps: float,
    threshold: float,
    hard: bool,
    squeezes: Sequence[Tensor | None],
    transform: Sequence[Tensor | None],
    channels: Sequence[int],
    groups: int,
    window: Sequence[int],
    centre: int | None,
    relu: bool,
    weights: Sequence[Tensor] | None = None,
    expected: int = 0,
) -> Tensor:
    """See :func:`mmscconv.ops.scconv.scconv`; ``expected`` is the packed weights' fingerprint."""
    if weights is not None and fingerprint(weights) != expected:
        up, low, gwc, pwc1, pwc2 = weights
        squeezes = packed(up), packed(low), *squeezes[2:]
        transform = packed_transform(gwc, pwc1, pwc2, groups, centre), *transform[1:]
    values = as_dense(x, torch.channels_last)
    cut, *others = channels
    squeezes, transform = ([t if t is None else bf16_as_fp32(t) for t in part] for part in (squeezes, transform))
    check_scconv(x, scale, shift, num_groups, squeezes, transform, channels, groups, window, centre)
    size = pooled_size(x.shape[2:], window[2:4])
    out = empty(len(x), others[2], *size, dtype=x.dtype, layout=torch.channels_last)
    call(
        'scconv', values, scale, shift, *squeezes, *transform, x.shape[1], num_groups, eps, threshold, hard, cut,
        _geometry(x, others, groups, window, size, centre), relu, _map_kind(x), torch.get_num_threads(),
        out,
    )  # fmt: skip
    return out


def transform_fuse_backward(
    grad: Tensor,
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    gwc: Tensor,
    pwc1: Tensor,
    pwc2: Tensor,
    bias1: Tensor | None,
    bias2: Tensor | None,
    beta1: Tensor,
    groups: int,
    window: Sequence[int],
) -> tuple[Tensor, ...]:
    """See :func:`mmscconv.ops.transform_fuse.transform_fuse`; the gradient of a None is an empty tensor."""
    check_transform_fuse(x_up, up, low, gwc, pwc1, pwc2, bias1, bias2, groups, window)
    fitting = has(grad, len(low), len(gwc), *low.shape[2:]) and has(beta1, len(low), len(gwc))
    check('transform_fuse', fitting, grad=grad, low=low, gwc=gwc, beta1=beta1)
    centre = _centre(up, low, window)
    x_up, up, low = _inputs(x_up, up, low)
    grad = as_dense(grad, torch.channels_last)
    weights = transform_rows(gwc, pwc1, pwc2, groups, centre)
    grad_x_up, grad_low = torch.empty_like(x_up), torch.empty_like(low)
    grad_up = None if up is None else torch.empty_like(up)
    grad_weights = torch.empty_like(weights)
    grad_biases = [None if bias is None else torch.empty_like(bias) for bias in (bias1, bias2)]
    channels = x_up.shape[1], low.shape[1], len(gwc), len(pwc2)
    geometry = _geometry(x_up, channels, groups, window, low.shape[2:], centre)
    call(
        'transform_fuse_backward', grad, x_up, up, low, weights, beta1, bias1, bias2, geometry,
        _is_bf16(low), torch.get_num_threads(), grad_x_up, grad_up, grad_low, grad_weights, *grad_biases,
    )  # fmt: skip
    grads = weights_of_rows(grad_weights, gwc, pwc1, pwc2, groups, centre)
    optional = [empty(0) if t is None else t for t in (grad_up, *grad_biases)]
    return grad_x_up, optional[0], grad_low, *grads, *optional[1:]


def _centre(up: Tensor | None, low: Tensor, window: Sequence[int]) -> int | None:
    """Return the tap that includes PWC1, or None if PWC1 has an input of its own."""
    if up is not None:
        if up.shape[2:] != low.shape[2:]:
            raise ValueError(f"the 1x1 convolutions' inputs must have one size, got {up.shape} and {low.shape}")
        return None
    centre = centre_of(window)
    if centre is None:
        raise ValueError(f'no tap of the window {tuple(window)} sees the position of the output: PWC1 needs an input')
    return centre


def _inputs(x_up: Tensor, up: Tensor | None, low: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    x_up, low = (as_dense(t, torch.channels_last) for t in (x_up, low))
    return x_up, None if up is None else as_dense(up, torch.channels_last), low


def _geometry(
    x: Tensor,
    channels: Sequence[int],
    groups: int,
    window: Sequence[int],
    size: Sequence[int],
    centre: int | None,
) -> ctypes.Array[ctypes.c_int64]:
    """Return the numbers of csrc/transform.h's Geometry; ``channels``: u, l, C2 and PWC2's output channels."""
    n, _, h, w = x.shape
    numbers = (n, h, w, *channels, groups, *window, *size, -1 if centre is None else centre)
    return (ctypes.c_int64 * len(numbers))(*numbers)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.batch_norm.batch_norm`."""
    c = x.shape[1]
    check('batch_norm', has(weight, c) and has(bias, c), x=x, weight=weight, bias=bias)
    values = as_dense(x, torch.channels_last)
    out, mean, variance = torch.empty_like(values), *(empty(c, dtype=torch.float64) for _ in range(2))
    call(
        'batch_norm_forward', values, weight.contiguous(), bias.contiguous(), x.numel() // c, c, eps,
        _is_bf16(x), torch.get_num_threads(), out, mean, variance,
    )  # fmt: skip
    return out, mean, variance


def batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.batch_norm.batch_norm`."""
    c = x.shape[1]
    check('batch_norm', has(weight, c) and grad.shape == x.shape, grad=grad, x=x, weight=weight)
    grad, values = (as_dense(t, torch.channels_last) for t in (grad, x))
    grad_x, (grad_weight, grad_bias) = torch.empty_like(values), empty(2, c, dtype=torch.float64)
    call(
        'batch_norm_backward', grad, values, weight.contiguous(), mean.contiguous(), variance.contiguous(),
        x.numel() // c, c, eps, _is_bf16(x), torch.get_num_threads(), grad_x, grad_weight, grad_bias,
    )  # fmt: skip
    return grad_x, grad_weight.float(), grad_bias.float()


def norm_fuse(y1: Tensor, pwc2_out: Tensor, x_low: Tensor, *affine: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.norm_fuse.norm_fuse`; also returns the means of each sample, (2, N, C)."""
    maps, settings = _norm_fuse_arguments((y1, pwc2_out, x_low), affine)
    n, c, _ = _size(y1)
    out = torch.empty_like(maps[0])
    mean, variance, sample_means = (empty(*shape, dtype=torch.float64) for shape in ((2, c), (2, c), (2, n, c)))
    call(
        'norm_fuse_forward', *maps, *settings, *_size(y1), x_low.shape[1], _is_bf16(y1), torch.get_num_threads(), out,
        mean, variance, sample_means,
    )  # fmt: skip
    return out, mean, variance, sample_means


def norm_fuse_backward(grad: Tensor, y1: Tensor, pwc2_out: Tensor, x_low: Tensor, *others: Any) -> tuple[Tensor, ...]:
    """See :func:`mmscconv.ops.norm_fuse.norm_fuse`; ``others``: the norms' arguments and the statistics."""
    (grad, *maps), affine = _norm_fuse_arguments((grad, y1, pwc2_out, x_low), others[:6])
    n, c, _ = _size(y1)
    mean, variance, sample_means = (t.contiguous() for t in others[6:])
    fitting = has(mean, 2, c) and has(variance, 2, c) and has(sample_means, 2, n, c)
    check('norm_fuse', fitting, y1=y1, mean=mean, variance=variance, sample_means=sample_means)
    grads = [torch.empty_like(t) for t in maps]
    grad_weights, grad_biases = (empty(2, c, dtype=torch.float64) for _ in range(2))
    call(
        'norm_fuse_backward', grad, *maps, *affine, mean, variance, sample_means, *_size(y1), x_low.shape[1],
        _is_bf16(y1), torch.get_num_threads(), *grads, grad_weights, grad_biases,
    )  # fmt: skip
    return *grads, *(t[i].float() for i in range(2) for t in (grad_weights, grad_biases))


def _norm_fuse_arguments(maps: Sequence[Tensor], affine: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
    """Return the maps, of which the last three are Y1 and the parts of Y2, and both norms' arguments, dense."""
    *_, y1, pwc2_out, x_low = maps
    n, c, h, w = y1.shape
    l = x_low.shape[1]  # noqa: E741
    weights = [t for t in affine if isinstance(t, Tensor)]
    fitting = has(pwc2_out, n, c - l, h, w) and has(x_low, n, l, h, w) and all(has(t, c) for t in weights)
    check('norm_fuse', fitting and has(maps[0], n, c, h, w), y1=y1, pwc2_out=pwc2_out, x_low=x_low, weight1=weights[0])
    dense = [as_dense(t, torch.channels_last) for t in maps]
    return dense, [t.contiguous() if isinstance(t, Tensor) else t for t in affine]
