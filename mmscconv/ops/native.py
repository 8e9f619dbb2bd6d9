"""The CPU kernels of ``csrc/``: compiled on first use with the machine's C compiler, called through ctypes.

Plain C without PyTorch's headers compiles in a few seconds and does not depend
on PyTorch's ABI. The kernels work in fp32 on NCHW or channels-last data; fp16 and
bf16 are converted on the way in and out.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor

from mmscconv.ops.layout import as_dense, as_rows, layout_of, row_stride

SOURCES = Path(__file__).parent / 'csrc'
PANEL = 32  # as csrc/gemm.h has it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# NaN and infinity keep their meaning: no -ffast-math. gnu11 and not c11, which rules out fused multiply-adds.
FLAGS = ('-O3', '-std=gnu11', '-fPIC', '-fno-math-errno', '-fno-trapping-math')
# In order of preference: a compiler may lack OpenMP, or not know the machine it runs on.
OPTIONAL_FLAGS = (('-march=native', '-fopenmp'), ('-march=native', '-fopenmp-simd'), ())

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double
_ARGUMENTS = {
    'sru_forward': [_POINTER] * 3 + [_LONG] * 3 + [_INT, _LONG, _DOUBLE, _FLOAT, _INT, _INT] + [_POINTER] * 3,
    'sru_backward': [_POINTER] * 6 + [_LONG] * 3 + [_INT, _LONG, _FLOAT, _INT, _INT] + [_POINTER] * 3,
    'fuse_forward': [_POINTER] * 6 + [_LONG] * 3 + [_INT] + [_LONG] * 3 + [_INT] + [_POINTER] * 2,
    'sru_squeeze': [*[_POINTER] * 7, *[_LONG] * 5, _DOUBLE, _FLOAT, _INT, *[_LONG] * 5, _INT, *[_POINTER] * 4],
    'sru_squeeze_backward': [*[_POINTER] * 9, *[_LONG] * 4, _FLOAT, _INT, *[_LONG] * 3, _INT, *[_POINTER] * 5],
    'transform_fuse': [*[_POINTER] * 9, _INT, _INT, *[_POINTER] * 2],
    'norm_fuse_sums': [*[_POINTER] * 4, *[_LONG] * 4, _INT, _POINTER],
    'norm_fuse_forward': [*[_POINTER] * 4, *[_LONG] * 4, _INT, _POINTER],
    'norm_fuse_backward': [*[_POINTER] * 5, *[_LONG] * 4, _INT, *[_POINTER] * 3],
    'transform_fuse_backward': [*[_POINTER] * 9, _INT, *[_POINTER] * 6],
    'fuse_backward': [_POINTER] * 2
    + [_INT]
    + [_POINTER] * 3
    + [_LONG] * 3
    + [_INT]
    + [_LONG] * 3
    + [_INT]
    + [_POINTER] * 4,
}


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels cannot run on this machine, or None; compiles them where that is still to be done."""
    built = _build()
    return built if isinstance(built, str) else None


@functools.cache
def _build() -> Path | str:
    """Return the compiled library, or the reason why there is none."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get('CC'), 'gcc', 'cc', 'clang')))), None)
    if compiler is None:
        return 'no C compiler was found: install gcc or clang, or name one in CC'
    sources = sorted(SOURCES.glob('*.c'))
    digest = hashlib.sha256('\n'.join((compiler, _cpu(), *FLAGS, *map(str, OPTIONAL_FLAGS))).encode())
    for path in (*sources, *sorted(SOURCES.glob('*.h'))):
        digest.update(path.read_bytes())
    name = f'kernels-{digest.hexdigest()[:16]}.so'
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            return folder / name
        scratch = Path(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        return f'{error}: name a folder that can be written in MMSCCONV_CACHE_DIR'
    try:
        for optional in OPTIONAL_FLAGS:
            message = _compile([compiler, *FLAGS, *optional], sources, scratch / name)
            if message is None:
                # At once, for several processes may compile at the same time.
                (scratch / name).replace(folder / name)
                return folder / name
        return f'{compiler} failed: {message}'
    except OSError as error:
        return f'{compiler} failed: {error}'
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compile(command: Sequence[str], sources: Sequence[Path], library: Path) -> str | None:
    """Write the library; return the compiler's message if it fails."""

    def run(*arguments: object) -> str | None:
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
        return None if done.returncode == 0 else done.stderr.strip() or 'no message'

    objects = [library.with_name(f'{source.stem}.o') for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        messages = list(pool.map(lambda pair: run('-c', pair[0], '-o', pair[1]), zip(sources, objects, strict=True)))
    return next(filter(None, messages), None) or run('-shared', *objects, '-o', library, '-lm')


def cache_folder() -> Path:
    """Return where compiled kernels are kept: MMSCCONV_CACHE_DIR, or mmscconv in the user's cache folder."""
    chosen = os.environ.get('MMSCCONV_CACHE_DIR')
    if chosen:
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmscconv'


def _cpu() -> str:
    """Return what tells machines apart that share a home folder but not their instructions."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))


@functools.cache
def _library() -> ctypes.CDLL:
    built = _build()
    if isinstance(built, str):
        raise RuntimeError(built)
    library = ctypes.CDLL(str(built))
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def _call(name: str, *arguments: Tensor | ctypes.Array[ctypes.c_int64] | float | None) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if getattr(_library(), name)(*values):
        raise MemoryError(f'{name}: no memory for its workspace')


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def sru_forward(
    x: Tensor, scale: Tensor, shift: Tensor, num_groups: int, eps: float, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    layout = layout_of(x)
    values, scale, shift = as_dense(x.float(), layout), scale.contiguous(), shift.contiguous()
    out = torch.empty_like(values)
    mean, rstd = (torch.empty(len(x), num_groups, dtype=torch.float32) for _ in range(2))
    _call(
        'sru_forward', values, scale, shift, *_size(x), layout is torch.channels_last, num_groups, eps, threshold,
        hard, torch.get_num_threads(), out, mean, rstd,
    )  # fmt: skip
    return out.to(x.dtype), mean, rstd


def sru_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, threshold: float, hard: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.sru.sru`."""
    layout = layout_of(x)
    values, upstream = as_dense(x.float(), layout), as_dense(grad.float(), layout)
    scale, shift = scale.contiguous(), shift.contiguous()
    grad_x = torch.empty_like(values)
    grad_scale, grad_shift = torch.empty(2, x.shape[1], dtype=torch.float64)
    _call(
        'sru_backward', upstream, values, scale, shift, mean, rstd, *_size(x), layout is torch.channels_last,
        mean.shape[1], threshold, hard, torch.get_num_threads(), grad_x, grad_scale, grad_shift,
    )  # fmt: skip
    return grad_x.to(x.dtype), grad_scale.float(), grad_shift.float()


def fuse_forward(
    first: Tensor,
    low: Tensor,
    second: Tensor | None,
    made: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    layout = layout_of(first)
    first_ = as_dense(first.float(), layout)
    second_, made_ = (None if t is None else as_dense(t.float(), layout) for t in (second, made))
    low_ = as_rows(low.float(), layout)
    out = first_ if overwrite else torch.empty_like(first_)
    beta1 = torch.empty(first.shape[:2], dtype=torch.float32)
    _call(
        'fuse_forward', first_, second_, made_, low_, scale, shift, *_size(first), layout is torch.channels_last,
        *_rows(low_, layout), torch.get_num_threads(), out, beta1,
    )  # fmt: skip
    return out.to(first.dtype), beta1


def fuse_backward(
    grad: Tensor, reference: Tensor, is_output: bool, low: Tensor, made: Tensor | None, beta1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.fuse.fuse`."""
    layout = layout_of(reference)
    grad_, reference_ = (as_dense(t.float(), layout) for t in (grad, reference))
    made_, low_ = None if made is None else as_dense(made.float(), layout), as_rows(low.float(), layout)
    grad1 = torch.empty_like(reference_)
    n, c, h, w = grad.shape
    grad_made, grad_low = (
        torch.empty(n, channels, h, w, dtype=torch.float32, memory_format=layout)
        for channels in (c - low.shape[1], low.shape[1])
    )
    _call(
        'fuse_backward', grad_, reference_, is_output, made_, low_, beta1, *_size(grad),
        layout is torch.channels_last, *_rows(low_, layout), torch.get_num_threads(), torch.empty_like(beta1), grad1,
        grad_made, grad_low,
    )  # fmt: skip
    return grad1.to(grad.dtype), grad_made.to(grad.dtype), grad_low.to(grad.dtype)


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
    packed_up: Tensor | None,
    packed_low: Tensor | None,
    pool: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`mmscconv.ops.pointwise.sru_squeeze`; also the groups' means and inverse deviations, (N, groups)."""
    values = as_dense(x, torch.channels_last)
    n, c, h, w = x.shape
    x_up, x_low = (
        torch.empty(n, len(weight), *size, dtype=torch.float32, memory_format=torch.channels_last)
        for weight, size in ((up, (h, w)), (low, pooled_size((h, w), pool)))
    )
    mean, rstd = (torch.empty(n, num_groups, dtype=torch.float32) for _ in range(2))
    panels = (packed(up) if packed_up is None else packed_up, packed(low) if packed_low is None else packed_low)
    _call(
        'sru_squeeze', values, scale, shift, *panels, bias_up, bias_low, n, c, h, w, num_groups, eps, threshold, hard,
        up.shape[1], len(up), len(low), *pool, torch.get_num_threads(), x_up, x_low, mean, rstd,
    )  # fmt: skip
    return x_up, x_low, mean, rstd


def pooled_size(size: Sequence[int], pool: Sequence[int]) -> tuple[int, int]:
    """Return H' and W' of H and W behind a pool whose last windows may be cut off."""
    return -(-size[0] // pool[0]), -(-size[1] // pool[1])


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
    """See :func:`mmscconv.ops.pointwise.sru_squeeze`."""
    grad_up, grad_low, values = (as_dense(t, torch.channels_last) for t in (grad_up, grad_low, x))
    grad_x = torch.empty_like(values)
    grad_scale, grad_shift = torch.empty(2, x.shape[1], dtype=torch.float64)
    grad_weights = [torch.empty(weight.shape, dtype=torch.float32) for weight in (up, low)]
    _call(
        'sru_squeeze_backward', grad_up, grad_low, values, scale, shift, mean, rstd, packed(up.flatten(1).T),
        packed(low.flatten(1).T), *_size(x), mean.shape[1], threshold, hard, up.shape[1], len(up), len(low),
        torch.get_num_threads(), grad_x, grad_scale, grad_shift, *grad_weights,
    )  # fmt: skip
    return grad_x, grad_scale.float(), grad_shift.float(), grad_weights[0], grad_weights[1]


def packed(weight: Tensor, groups: int = 1) -> Tensor:
    """Return (J, ...) weights in the kernels' panels, (panels, K, PANEL).

    Panels are PANEL output channels wide, filled up with zeros, and never hold
    channels of two groups.
    """
    rows = weight.detach().flatten(1).unflatten(0, (groups, -1))
    rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % PANEL))
    return rows.unflatten(1, (-1, PANEL)).flatten(0, 1).transpose(1, 2).contiguous()


def transform_fuse(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    gwc: Tensor,
    pwc1: Tensor,
    pwc2: Tensor,
    packed_weights: Tensor | None,
    bias1: Tensor | None,
    bias2: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    window: Sequence[int],
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmscconv.ops.pointwise.transform_fuse`; also beta1, (N, C)."""
    centre = _centre(up, low, window)
    x_up, up, low = _inputs(x_up, up, low)
    if packed_weights is None:
        packed_weights = packed_transform(gwc, pwc1, pwc2, groups, centre)
    out = torch.empty(len(low), len(gwc), *low.shape[2:], dtype=torch.float32, memory_format=torch.channels_last)
    beta1 = torch.empty(len(low), len(gwc), dtype=torch.float32)
    geometry = _geometry(x_up, low, len(gwc), len(pwc2), groups, window, centre)
    _call(
        'transform_fuse', x_up, up, low, packed_weights, bias1, bias2, scale, shift, geometry, relu,
        torch.get_num_threads(), out, beta1,
    )  # fmt: skip
    return out, beta1


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
    """See :func:`mmscconv.ops.pointwise.transform_fuse`; the gradient of what is None is empty."""
    centre = _centre(up, low, window)
    x_up, up, low = _inputs(x_up, up, low)
    grad = as_dense(grad, torch.channels_last)
    weights = transform_rows(gwc, pwc1, pwc2, groups, centre, PANEL)
    grad_x_up, grad_low = torch.empty_like(x_up), torch.empty_like(low)
    grad_up = None if up is None else torch.empty_like(up)
    grad_weights = torch.empty_like(weights)
    grad_biases = [None if bias is None else torch.empty_like(bias) for bias in (bias1, bias2)]
    geometry = _geometry(x_up, low, len(gwc), len(pwc2), groups, window, centre)
    _call(
        'transform_fuse_backward', grad, x_up, up, low, weights, beta1, bias1, bias2, geometry,
        torch.get_num_threads(), grad_x_up, grad_up, grad_low, grad_weights, *grad_biases,
    )  # fmt: skip
    grads = _weights_of_rows(grad_weights, gwc, pwc1, pwc2, groups, centre)
    optional = [x_up.new_empty(0) if t is None else t for t in (grad_up, *grad_biases)]
    return grad_x_up, optional[0], grad_low, *grads, *optional[1:]


def _centre(up: Tensor | None, low: Tensor, window: Sequence[int]) -> int | None:
    """Return the tap that does PWC1 as well, or None where PWC1 has an input of its own."""
    if up is not None:
        if up.shape[2:] != low.shape[2:]:
            raise ValueError(f"the 1x1 convolutions' inputs have the output's size, got {up.shape} and {low.shape}")
        return None
    centre = centre_of(window)
    if centre is None:
        raise ValueError(f'no tap of the window {tuple(window)} is at the place of its output: PWC1 needs an input')
    return centre


def _inputs(x_up: Tensor, up: Tensor | None, low: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    x_up, low = (as_dense(t, torch.channels_last) for t in (x_up, low))
    return x_up, None if up is None else as_dense(up, torch.channels_last), low


def _geometry(
    x_up: Tensor, low: Tensor, channels: int, made: int, groups: int, window: Sequence[int], centre: int | None
) -> ctypes.Array[ctypes.c_int64]:
    """Return the numbers of csrc/transform.h's Geometry."""
    n, u, h, w = x_up.shape
    numbers = (n, h, w, u, low.shape[1], channels, made, groups, *window, *low.shape[2:])
    return (ctypes.c_int64 * (len(numbers) + 1))(*numbers, -1 if centre is None else centre)


def centre_of(window: Sequence[int]) -> int | None:
    """Return the tap that sees the position of its output, as kernel size, stride, padding and dilation have it."""
    (height, width), stride, padding, dilation = (tuple(window[i : i + 2]) for i in (0, 2, 4, 6))
    (y, more_y), (x, more_x) = (divmod(p, d) for p, d in zip(padding, dilation, strict=True))
    if stride != (1, 1) or more_y or more_x or y >= height or x >= width:
        return None
    return y * width + x


def packed_transform(gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> Tensor:
    """Return the weights of a CRU's transform as :func:`packed` does."""
    return packed(transform_rows(gwc, pwc1, pwc2, groups, centre), groups)


def transform_rows(
    gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None, multiple: int = 1
) -> Tensor:
    """Return a row (K) for each output channel: what PWC2, PWC1 and the GWC's taps multiply, one after the other.

    PWC2's part is the identity where X_low itself is Y2. PWC1 is part of the tap
    ``centre`` where that is given, which then sees all channels. Zeros fill up K to a
    ``multiple``.
    """
    parts = _Parts.of(gwc, pwc2, groups, centre)
    gwc, pwc1, pwc2 = gwc.detach(), pwc1.detach(), pwc2.detach()
    rows = gwc.new_zeros(len(gwc), -(-parts.end // multiple) * multiple)
    rows[: len(pwc2), parts.pwc2] = pwc2.flatten(1)
    rows[len(pwc2) :, parts.pwc2].fill_diagonal_(1)
    rows[:, parts.pwc1] = pwc1.flatten(1)
    taps = gwc.permute(0, 2, 3, 1).flatten(1)  # tap by tap: without a copy where the weights lie channels last
    rows[:, parts.before] = taps[:, : parts.taps_before]
    rows[:, parts.after] = taps[:, parts.taps_after :]
    if centre is not None:
        _blocks(rows[:, parts.pwc1], groups).add_(_blocks_of_tap(taps[:, parts.taps_before : parts.taps_after], groups))
    return rows


def _weights_of_rows(
    rows: Tensor, gwc: Tensor, pwc1: Tensor, pwc2: Tensor, groups: int, centre: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what of gradients of :func:`transform_rows` belongs to each weight, in its shape; GWC's channels last."""
    parts = _Parts.of(gwc, pwc2, groups, centre)
    c, each, height, width = gwc.shape
    taps = rows.new_empty(c, height, width, each)
    flat = taps.view(c, -1)
    flat[:, : parts.taps_before] = rows[:, parts.before]
    flat[:, parts.taps_after :] = rows[:, parts.after]
    if centre is not None:
        tap = flat[:, parts.taps_before : parts.taps_after]
        _blocks_of_tap(tap, groups).copy_(_blocks(rows[:, parts.pwc1], groups))
    of_pwc1, of_pwc2 = rows[:, parts.pwc1].clone(), rows[: len(pwc2), parts.pwc2].clone()
    return taps.permute(0, 3, 1, 2), of_pwc1.view(pwc1.shape), of_pwc2.view(pwc2.shape)


class _Parts(NamedTuple):
    """The columns of :func:`transform_rows`; GWC's taps lie in two parts, before and after what is done with PWC1."""

    pwc2: slice
    before: slice
    pwc1: slice
    after: slice
    taps_before: int  # columns of GWC's own, (taps, u / g)
    taps_after: int
    end: int

    @classmethod
    def of(cls, gwc: Tensor, pwc2: Tensor, groups: int, centre: int | None) -> _Parts:
        each, low = gwc.shape[1], pwc2.shape[1]
        before = 0 if centre is None else centre * each
        after = before if centre is None else before + each
        pwc1 = low + before
        tail = pwc1 + groups * each
        end = tail + gwc[0].numel() - after
        return cls(slice(low), slice(low, pwc1), slice(pwc1, tail), slice(tail, end), before, after, end)


def _blocks(rows: Tensor, groups: int) -> Tensor:
    """Return of (C, u) the blocks that belong to GWC's groups, (C / g, u / g, g)."""
    return rows.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).diagonal(dim1=0, dim2=2)


def _blocks_of_tap(tap: Tensor, groups: int) -> Tensor:
    """Return a tap, (C, u / g), in the order of :func:`_blocks`."""
    return tap.unflatten(0, (groups, -1)).permute(1, 2, 0)


def norm_fuse_sums(grad: Tensor | None, y1: Tensor, made: Tensor, low: Tensor) -> Tensor:
    """Return the sums over the positions of Y1, Y1^2, Y2 and Y2^2, or grad, grad * Y1 and grad * Y2: (N, 4 or 3, C)."""
    sums = torch.empty(len(y1), 4 if grad is None else 3, y1.shape[1], dtype=torch.float64)
    _call('norm_fuse_sums', grad, y1, made, low, *_size(y1), low.shape[1], torch.get_num_threads(), sums)
    return sums


def norm_fuse_forward(y1: Tensor, made: Tensor, low: Tensor, factors: Tensor) -> Tensor:
    """Return p * Y1 + q * Y2 + r of the ``factors`` p, q and r, (N, 3, C)."""
    out = torch.empty_like(y1)
    _call('norm_fuse_forward', y1, made, low, factors, *_size(y1), low.shape[1], torch.get_num_threads(), out)
    return out


def norm_fuse_backward(
    grad: Tensor, y1: Tensor, made: Tensor, low: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a * grad + b * Y + c for Y1 and for the parts of Y2; ``factors``: (N, 6, C), those of Y1 first."""
    grads = torch.empty_like(y1), torch.empty_like(made), torch.empty_like(low)
    _call(
        'norm_fuse_backward', grad, y1, made, low, factors, *_size(y1), low.shape[1], torch.get_num_threads(), *grads
    )  # fmt: skip
    return grads
