"""Choice of the implementation of the layers' arithmetic: an explicit one, MMSCCONV_BACKEND's, or the fastest.

==========  ==================================================================
``plain``   PyTorch operations: runs everywhere, and defines what is correct
``native``  C kernels on the CPU, compiled on first use (:mod:`mmscconv.ops.native`)
``triton``  Triton kernels on CUDA devices
==========  ==================================================================

An explicit choice or MMSCCONV_BACKEND that cannot run raises; the automatic choice
falls back to ``plain`` and logs the reason (logger ``mmscconv``, level DEBUG).
Observers always see ``plain``: export and tracing, because a graph has to run
without this package (:mod:`mmscconv.export.custom_op` brings the kernels along),
and dispatch and function modes, which count, record or change operations and cannot
look into a kernel. A forward pass that backward recomputes takes the form that it took
before, whoever looks on then.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.utils._device import DeviceContext

from mmscconv.ops import compiled
from mmscconv.ops.layout import layout_of
from mmscconv.ops.prototypes import MAP_DTYPES
from mmscconv.ops.recomputation import Decision

F = TypeVar('F', bound=Callable[..., Any])
BACKENDS = ('plain', 'native', 'triton')
VARIABLE = 'MMSCCONV_BACKEND'
OLDEST_TRITON = (3, 2)  # 3.0 refuses the kernels: its tl.arange takes no computed constants
OLDEST_CAPABILITY, OLDEST_CAPABILITY_BF16 = (7, 0), (8, 0)  # of CUDA devices, for Triton
_LOGGER = logging.getLogger('mmscconv')
_forced_plain = 0
LOOKED_ON = Decision()


class BackendUnavailableError(RuntimeError):
    """An explicitly chosen backend cannot run; the message says why."""


def _constant_when_traced(function: F) -> F:
    """Let torch.compile call ``function`` and take its answer as a constant.

    As torch.compiler.assume_constant_result, without its import of torch._dynamo,
    which takes 1.5 seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # the mark is dynamo's own
    return function


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless ``backend`` is None or one of BACKENDS."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f'backend must be one of {BACKENDS}, or None for the fastest that runs, got {backend!r}')


def choose_backend(x: Tensor, explicit: str | None = None, beyond_fusion: bool = False) -> str:
    """Return the backend for an input like ``x``.

    Under torch.compile on the CPU the automatic choice is ``plain``, whose passes
    inductor fuses as well as the kernels do; with ``beyond_fusion``, for kernels
    that do more than inductor can fuse, it stays ``native``.

    Raises:
        BackendUnavailableError: ``explicit`` or MMSCCONV_BACKEND names a backend that cannot run here.
        ValueError: MMSCCONV_BACKEND names no backend.
    """
    if exporting() or looked_on():
        return 'plain'
    wanted = explicit or _from_environment()
    if wanted:
        check_backend(wanted)
        reason = _refusal(wanted, x)
        if reason:
            raise BackendUnavailableError(f"backend {wanted!r} cannot run: {reason}; backend='plain' can")
        return wanted
    fitting = 'triton' if x.device.type == 'cuda' else 'native'
    if fitting == 'native' and torch.compiler.is_compiling() and not beyond_fusion:
        return 'plain'
    reason = _refusal(fitting, x)
    if reason is None:
        return fitting
    if not torch.compiler.is_compiling():
        _LOGGER.debug('plain PyTorch form instead of %s kernels: %s', fitting, reason)
    return 'plain'


def fits(x: Tensor) -> bool:
    """Return whether the joined kernels are written for a map like ``x``, (N, C, H, W)."""
    return x.dtype in MAP_DTYPES and layout_of(x) is torch.channels_last and x.numel() > 0


@contextmanager
def plain_only() -> Iterator[None]:
    """Run everything inside on ``plain``, for counters of operations, which cannot look into a kernel."""
    global _forced_plain
    _forced_plain += 1
    try:
        yield
    finally:
        _forced_plain -= 1


def looked_on() -> bool:
    """Return whether an observer or :func:`plain_only` asks for ``plain``; in a recomputation, whether one did then."""
    if torch.compiler.is_compiling():
        return _forced_plain > 0
    return _forced_plain > 0 or observed() if LOOKED_ON.then is None else LOOKED_ON.then


def kernels(backend: str) -> ModuleType:
    """Return the module with the kernels of ``'native'`` or ``'triton'``."""
    return importlib.import_module(f'mmscconv.ops.{"native" if backend == "native" else "gpu"}')


def _refusal(backend: str, x: Tensor) -> str | None:
    """Return why ``backend`` cannot run on an input like ``x``, or None."""
    if backend == 'plain':
        return None
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f'it computes in fp32 and takes fp32, bf16 and fp16, not {x.dtype}'
    if not torch.compiler.is_compiling() and type(x) not in (Tensor, nn.Parameter):
        # Subclasses may own no memory, or change every operation.
        return f'it takes no tensor subclasses, got a {type(x).__name__}'
    if transformed():
        mode = 'forward-mode AD' if forward_mode() else 'a transform of torch.func (grad, vmap, jacrev, ...)'
        return f'{mode} is active and has to see the operations'
    if backend == 'native':
        return _native_unavailable() if x.device.type == 'cpu' else f'it needs a CPU tensor, got one on {x.device}'
    reason = triton_unavailable()
    if reason:
        return reason
    if x.device.type != 'cuda' and not interpreting():
        return f'it needs a CUDA tensor, got one on {x.device} (TRITON_INTERPRET=1 runs its kernels on the CPU)'
    if x.device.type == 'cuda' and not interpreting():
        return triton_fails_on(x.device.index or 0, x.dtype is torch.bfloat16)
    return None


@_constant_when_traced
def triton_unavailable() -> str | None:
    """Return why Triton's kernels cannot run on any device, or None."""
    try:
        version = importlib.import_module('triton').__version__  # its distribution has several names
    except ImportError:
        return 'triton is not installed'
    if tuple(map(int, re.findall(r'\d+', version)[:2])) < OLDEST_TRITON:
        return f'triton {version} is older than {".".join(map(str, OLDEST_TRITON))}, which its kernels need (torch 2.6)'
    return None


@_constant_when_traced
def triton_fails_on(index: int, bf16: bool) -> str | None:
    """Return why Triton's kernels cannot run on this CUDA device, or None; a small one runs at the first call."""
    return _tried_on(index, bf16)


@functools.cache
def _tried_on(index: int, bf16: bool) -> str | None:
    needed, found = OLDEST_CAPABILITY_BF16 if bf16 else OLDEST_CAPABILITY, torch.cuda.get_device_capability(index)
    if found < needed:
        words = [f'{major}.{minor}' for major, minor in (needed, found)]
        return (
            f'its kernels need compute capability {words[0]}{" for bf16" if bf16 else ""}, cuda:{index} has {words[1]}'
        )
    try:
        device = torch.device('cuda', index)
        x = torch.zeros(1, 2, 1, 1, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
        with torch.no_grad():
            kernels('triton').sru_forward(x, *torch.ones(2, 2, device=device, dtype=torch.float32), 1, 1e-5, 0.0, False)
    except Exception as error:  # no C compiler, no libcuda, a cache folder that cannot be written, ...
        reason = f'a first kernel fails on cuda:{index}: {" ".join(str(error).split())[:300]}'
        _warn_once(f'SCConv runs its plain PyTorch form on the GPU: {reason}')
        return reason
    return None


def interpreting() -> bool:
    """Return whether Triton was asked to interpret its kernels on the CPU."""
    return os.environ.get('TRITON_INTERPRET') == '1'


# Torch 2.4 cannot trace the look-up of an unset variable.
@_constant_when_traced
def _from_environment() -> str | None:
    return os.environ.get(VARIABLE)


# torch.compile cannot trace the call of the C compiler.
@_constant_when_traced
def _native_unavailable() -> str | None:
    reason = compiled.unavailable()
    if reason:
        _warn_once(f'SCConv runs its plain PyTorch form on the CPU, which is slower: {reason}')
    return reason


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


@_constant_when_traced
def forward_mode() -> bool:
    """Return whether a level of forward-mode AD is active, torch.func.jvp's included."""
    return forward_ad._current_level >= 0


@_constant_when_traced
def transformed() -> bool:
    """Return whether a transform of torch.func (grad, vmap, jvp, ...) or forward-mode AD is active."""
    return torch._C._functorch.maybe_current_level() is not None or forward_mode()


def observed() -> bool:
    """Return whether a mode other than torch.compile's sees every operation, as FlopCounterMode does."""
    return not torch.compiler.is_compiling() and (torch._C._len_torch_dispatch_stack() > 0 or overridden())


def overridden() -> bool:
    """Return whether a TorchFunctionMode sees every function; the default device's and this package's do not count."""
    if torch.compiler.is_compiling():
        return False
    modes = (torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))
    return any(type(m) is not DeviceContext and not type(m).__module__.startswith('mmscconv.') for m in modes)


@_constant_when_traced
def has_autocast(device_type: str) -> bool:
    """Return whether devices of this type have autocast; torch raises if it is asked about others, such as meta."""
    return torch.amp.is_autocast_available(device_type)


def becoming_graph() -> bool:
    """Return whether the running code is traced, exported or compiled."""
    return exporting() or torch.compiler.is_compiling()


# A constant for torch.compile, which would otherwise take every compilation for an export.
@_constant_when_traced
def exporting() -> bool:
    """Return whether torch.jit, torch.fx, torch.export or ONNX's exporter is making a graph of the running code."""
    # torch.fx's own function for this flag logs a warning at each call.
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or _symbolic_trace._is_fx_tracing_flag:
        return True
    return getattr(torch.compiler, 'is_exporting', bool)()
