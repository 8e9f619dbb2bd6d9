"""CRU's fuse (Eq. 7-9): the plain form, and the custom op that the kernels stand behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmscconv.ops.backend import choose_backend, kernels
from mmscconv.ops.layout import empty_like_dense, layout_of

FOR_INFERENCE = 'the deploy form of SCConv is for inference: train the model before switch_to_deploy()'


def fuse(
    first: Tensor,
    low: Tensor,
    second: Tensor | None = None,
    made: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    output_is_kept: bool = False,
    overwrite: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Return Z = beta1 * Y1 + beta2 * Y2 (Eq. 7-9), or scale * Z + shift; equal to :func:`fuse_plain`.

    The kernels read their inputs twice, mostly from the caches, and write once.

    Args:
        first, second: (N, C, H, W) each; Y1 is their sum, or ``first`` alone.
        low: (N, l, H, W), X_low.
        made: (N, C - l, H, W), what PWC2 makes; Y2 is ``cat(made, low)``, or
            ``low`` alone where l = C.
        scale, shift: (C), fp32, of a norm behind the layer; for inference only.
        output_is_kept: Whether nobody writes into the result before backward has
            run: then it is kept for backward in the place of ``first``, which
            costs nothing where the next layer keeps it anyway, as a norm does.
        overwrite: Whether the result may take the place of ``first``, which saves
            its memory; done where no gradients are recorded.
        backend: See :mod:`mmscconv.ops.backend`.

    Returns:
        (N, C, H, W), in the dtype and layout of ``first``.
    """
    backend = choose_backend(first, backend)
    if backend == 'plain' or not first.numel():
        return fuse_plain(first, low, second, made, scale, shift)
    if not torch.is_grad_enabled() and overwrite and not torch.compiler.is_compiling():
        return kernels(backend).fuse_forward(first, low, second, made, scale, shift, overwrite=True)[0]
    if torch.is_grad_enabled() and second is not None and not output_is_kept:
        first, second = first + second, None
    return torch.ops.mmscconv.fuse(first, low, second, made, scale, shift, output_is_kept, backend)[0]


def fuse_plain(
    first: Tensor,
    low: Tensor,
    second: Tensor | None = None,
    made: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Return what :func:`fuse` returns, by PyTorch operations: the definition of correct."""
    y1 = first if second is None else first + second
    y2 = low if made is None else torch.cat((made, low), dim=1)
    s = torch.stack([y.mean(dim=(2, 3), keepdim=True) for y in (y1, y2)])
    beta1, beta2 = s.softmax(dim=0).to(y1.dtype)
    if scale is None or shift is None:
        return beta1 * y1 + beta2 * y2
    scale, shift = (t.to(y1.dtype).view(-1, 1, 1) for t in (scale, shift))
    return (beta1 * scale) * y1 + ((beta2 * scale) * y2 + shift)


torch.library.define(
    'mmscconv::fuse',
    '(Tensor first, Tensor low, Tensor? second, Tensor? made, Tensor? scale, Tensor? shift, bool output_is_kept,'
    ' str backend) -> (Tensor, Tensor)',
)
torch.library.define(
    'mmscconv::fuse_backward',
    '(Tensor grad, Tensor reference, bool is_output, Tensor low, Tensor? made, Tensor beta1, str backend)'
    ' -> (Tensor, Tensor, Tensor)',
)


@torch.library.impl('mmscconv::fuse', ('cpu', 'cuda'))
def _forward(
    first: Tensor,
    low: Tensor,
    second: Tensor | None,
    made: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    output_is_kept: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return kernels(backend).fuse_forward(first, low, second, made, scale, shift)


@torch.library.impl('mmscconv::fuse_backward', ('cpu', 'cuda'))
def _backward(
    grad: Tensor, reference: Tensor, is_output: bool, low: Tensor, made: Tensor | None, beta1: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels(backend).fuse_backward(grad, reference, is_output, low, made, beta1)


@torch.library.register_fake('mmscconv::fuse')
def _forward_fake(first: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_like_dense(first), first.new_empty(first.shape[:2], dtype=torch.float32)


@torch.library.register_fake('mmscconv::fuse_backward')
def _backward_fake(
    grad: Tensor, reference: Tensor, is_output: bool, low: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = reference.shape
    grad_made, grad_low = (
        torch.empty(n, channels, h, w, dtype=grad.dtype, device=grad.device, memory_format=layout_of(reference))
        for channels in (c - low.shape[1], low.shape[1])
    )
    return empty_like_dense(reference), grad_made, grad_low


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    first, low, second, made, scale, _, ctx.is_output, ctx.backend = inputs
    out, beta1 = output
    ctx.two_parts, ctx.scaled = second is not None, scale is not None
    ctx.mark_non_differentiable(beta1)
    ctx.save_for_backward(out if ctx.is_output else first, low, made, beta1)


def _backward_of_forward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.scaled:
        raise RuntimeError(FOR_INFERENCE)
    reference, low, made, beta1 = ctx.saved_tensors
    grad1, grad_made, grad_low = torch.ops.mmscconv.fuse_backward(
        grad, reference, ctx.is_output, low, made, beta1, ctx.backend
    )
    return (
        grad1, grad_low, grad1 if ctx.two_parts else None, None if made is None else grad_made, None, None, None, None
    )  # fmt: skip


torch.library.register_autograd('mmscconv::fuse', _backward_of_forward, setup_context=_setup_context)
