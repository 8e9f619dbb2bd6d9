"""CRU's fuse (Eq. 7-9): the plain form, and the custom op that runs the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.identities import fuse as fuse_plain
from mmscconv.ops.backend import choose_backend, kernels
from mmscconv.ops.gradients import (
    FOR_INFERENCE,
    differentiable_gradients,
    must_be_differentiable,
    register_kernel,
    register_no_gradient,
)
from mmscconv.ops.layout import empty_like_dense, layout_of

Upper = Callable[..., tuple[Tensor, Tensor | None]]


def fuse(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None = None,
    pwc2_out: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    output_is_kept: bool = False,
    overwrite: bool = False,
    backend: str | None = None,
    again: Upper | None = None,
) -> Tensor:
    """Return Z = beta1 * Y1 + beta2 * Y2 (Eq. 7-9), or scale * Z + shift; equal to :func:`mmscconv.identities.fuse`.

    The kernels read their inputs twice, mostly from the caches, and write once.

    Args:
        y1, y1_addend: (N, C, H, W) each; Y1 is their sum, or ``y1`` alone.
        x_low: (N, l, H, W), X_low.
        pwc2_out: (N, C - l, H, W), PWC2's output; Y2 is ``cat(pwc2_out, x_low)``, or
            ``x_low`` alone where l = C.
        scale, shift: (C), fp32, of a norm behind the layer; for inference only.
        output_is_kept: Keep the result for backward instead of ``y1``: free if
            the next layer keeps it anyway, as a norm does. Nobody may write into
            the result before backward has run.
        overwrite: Whether the result may overwrite ``y1``, which saves its
            memory; done if no gradients are recorded.
        backend: See :mod:`mmscconv.ops.backend`.
        again: Recomputes ``y1`` and ``y1_addend``, with their graphs. Derivatives of the gradients need both, if
            ``output_is_kept``. Tensors among the arguments of a ``functools.partial`` are saved as autograd saves
            tensors: under its hooks, and checked for changes.

    Returns:
        (N, C, H, W), in the dtype and layout of ``y1``.

    Raises:
        RuntimeError: In backward with ``create_graph=True``, where ``output_is_kept`` without ``again``.
    """
    backend = choose_backend(y1, backend)
    alike = all(t is None or _like(t, y1) for t in (x_low, y1_addend, pwc2_out))
    if backend == 'plain' or not alike or not y1.numel():
        return fuse_plain(y1, x_low, y1_addend, pwc2_out, scale, shift)
    if not torch.is_grad_enabled() and overwrite and not torch.compiler.is_compiling():
        return kernels(backend).fuse_forward(y1, x_low, y1_addend, pwc2_out, scale, shift, overwrite=True)[0]
    if torch.is_grad_enabled() and y1_addend is not None and not output_is_kept:
        y1, y1_addend = y1 + y1_addend, None
    recomputable = output_is_kept and again is not None and scale is None
    if recomputable and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _OutputKept.apply(again, backend, y1, x_low, y1_addend, pwc2_out)
    return torch.ops.mmscconv.fuse(y1, x_low, y1_addend, pwc2_out, scale, shift, output_is_kept, backend)[0]


def _like(t: Tensor, y1: Tensor) -> bool:
    """Return whether the kernels may take ``t`` beside ``y1``: of other dtypes, torch's promotion decides."""
    return t.dtype is y1.dtype and (torch.compiler.is_compiling() or type(t) in (Tensor, nn.Parameter))


torch.library.define(
    'mmscconv::fuse',
    '(Tensor y1, Tensor x_low, Tensor? y1_addend, Tensor? pwc2_out, Tensor? scale, Tensor? shift, bool output_is_kept,'
    ' str backend) -> (Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::fuse_backward',
    '(Tensor grad, Tensor reference, bool is_output, Tensor x_low, Tensor? pwc2_out, Tensor beta1, str backend)'
    ' -> (Tensor, Tensor, Tensor)',
)


def _forward(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None,
    pwc2_out: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    output_is_kept: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return kernels(backend).fuse_forward(y1, x_low, y1_addend, pwc2_out, scale, shift)


def _backward(
    grad: Tensor,
    reference: Tensor,
    is_output: bool,
    x_low: Tensor,
    pwc2_out: Tensor | None,
    beta1: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(backend).fuse_backward(grad, reference, is_output, x_low, pwc2_out, beta1)


register_kernel('fuse', ('cpu', 'cuda'), _forward)
register_kernel('fuse_backward', ('cpu', 'cuda'), _backward)


@torch.library.register_fake('mmscconv::fuse')
def _forward_fake(y1: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_like_dense(y1), y1.new_empty(y1.shape[:2], dtype=torch.float32)


@torch.library.register_fake('mmscconv::fuse_backward')
def _backward_fake(
    grad: Tensor, reference: Tensor, is_output: bool, x_low: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = reference.shape
    grad_pwc2_out, grad_x_low = (
        torch.empty(n, channels, h, w, dtype=grad.dtype, device=grad.device, memory_format=layout_of(reference))
        for channels in (c - x_low.shape[1], x_low.shape[1])
    )
    return empty_like_dense(reference), grad_pwc2_out, grad_x_low


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y1, x_low, y1_addend, pwc2_out, scale, _, ctx.is_output, ctx.backend = inputs
    out, beta1 = output
    ctx.two_parts, ctx.scaled = y1_addend is not None, scale is not None
    ctx.mark_non_differentiable(beta1)
    upper = (out, None) if ctx.is_output else (y1, y1_addend)
    ctx.save_for_backward(*upper, x_low, pwc2_out, beta1)


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.scaled:
        raise RuntimeError(FOR_INFERENCE)
    y1, y1_addend, x_low, pwc2_out, beta1 = ctx.saved_tensors
    grads: Sequence[Tensor | None]
    if not must_be_differentiable():
        reference = y1 if y1_addend is None else y1 + y1_addend
        grads = _gradients(grad, reference, ctx.is_output, x_low, pwc2_out, beta1, ctx.backend, ctx.two_parts)
    elif ctx.is_output:
        raise RuntimeError("second derivatives through this fuse need backend='plain': it keeps only its output")
    else:
        grads = differentiable_gradients(
            fuse_plain, (y1, x_low, y1_addend, pwc2_out), (grad,), ctx.needs_input_grad[:4]
        )
    return *grads, None, None, None, None


def _gradients(
    grad: Tensor,
    reference: Tensor,
    is_output: bool,
    x_low: Tensor,
    pwc2_out: Tensor | None,
    beta1: Tensor,
    backend: str,
    two_parts: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of y1, x_low, y1_addend and pwc2_out by the kernels."""
    grad1, grad_pwc2_out, grad_x_low = torch.ops.mmscconv.fuse_backward(
        grad, reference, is_output, x_low, pwc2_out, beta1, backend
    )
    return grad1, grad_x_low, grad1 if two_parts else None, None if pwc2_out is None else grad_pwc2_out


torch.library.register_autograd('mmscconv::fuse', _backward_of_forward, setup_context=_setup_context)
register_no_gradient('fuse_backward')


def _function_and_tensors(again: Upper) -> tuple[Upper, tuple[Tensor, ...]]:
    """Return a partial's function and tensors; for any other callable, itself and no tensors."""
    if not isinstance(again, functools.partial) or again.keywords:
        return again, ()
    return (again.func, again.args) if all(isinstance(t, Tensor) for t in again.args) else (again, ())


class _OutputKept(torch.autograd.Function):
    """The op with its output kept and differentiable gradients, for which ``again`` recomputes Y1.

    ``again`` returns tensors equal to ``y1`` and ``y1_addend``, with graphs of their own back to the same leaves. The
    gradients of the inputs go to the node's inputs as always; the gradients' own dependence on Y1 goes through the new
    graph. So each dependence is counted once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        again: Upper,
        backend: str,
        y1: Tensor,
        x_low: Tensor,
        y1_addend: Tensor | None,
        pwc2_out: Tensor | None,
    ) -> Tensor:
        out, beta1 = torch.ops.mmscconv.fuse(y1, x_low, y1_addend, pwc2_out, None, None, True, backend)
        ctx.backend, ctx.two_parts = backend, y1_addend is not None
        ctx.again, sources = _function_and_tensors(again)
        device = y1.device.type
        ctx.autocast = functools.partial(
            torch.autocast, device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        ctx.save_for_backward(out, x_low, pwc2_out, beta1, *sources)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, x_low, pwc2_out, beta1, *sources = ctx.saved_tensors
        grads: Sequence[Tensor | None]
        if must_be_differentiable():
            with torch.enable_grad(), ctx.autocast():
                y1, y1_addend = ctx.again(*sources)
            grads = differentiable_gradients(
                fuse_plain, (y1, x_low, y1_addend, pwc2_out), (grad,), ctx.needs_input_grad[2:]
            )
        else:
            grads = _gradients(grad, out, True, x_low, pwc2_out, beta1, ctx.backend, ctx.two_parts)
        return None, None, *grads
