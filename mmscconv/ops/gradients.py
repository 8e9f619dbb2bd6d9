"""Backward passes of the ops: derivatives of every order, although the kernels compute the first alone.

A kernel's gradients are not differentiable. If they have to be (``create_graph=True``), the registered backward passes
compute them by :func:`differentiable_gradients` from the op's plain form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmscconv.ops.backend import forward_mode
from mmscconv.ops.flops import register_formulas

FOR_INFERENCE = 'the deploy form of SCConv is for inference: train the model before switch_to_deploy()'
Kernel = Callable[..., Any]


def must_be_differentiable() -> bool:
    """Return whether the running backward pass has to use differentiable operations."""
    return torch.is_grad_enabled() or forward_mode()


def differentiable_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of ``function(*inputs)``, themselves differentiable in ``inputs`` and ``grads``.

    Args:
        function: The plain form of an op; called once, without autocast.
        inputs: Linked to their history, as ``ctx.saved_tensors`` are.
        grads: Gradient of each output.
        needs: Which inputs need a gradient; the others get None.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(grads[0].device.type, enabled=False):
        # One input may be a function of another: no gradient flows from its alias to the other.
        aliases = [None if t is None else t.view_as(t) for t in inputs]
        outs = function(*aliases)
        of_outs = zip(outs if isinstance(outs, tuple) else (outs,), grads, strict=True)
        pairs = [(out, grad) for out, grad in of_outs if out.requires_grad]
        wanted = [t for t, need in zip(aliases, needs, strict=True) if need and t is not None]
        if pairs:
            outs_of, grads_of = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outs_of, wanted, grads_of, create_graph=recorded, materialize_grads=True))
        else:  # the hard gate's masks depend on no weight
            found = iter([torch.zeros_like(t) for t in wanted])
    return [next(found) if need and t is not None else None for t, need in zip(aliases, needs, strict=True)]


def register_kernel(op: str, devices: str | tuple[str, ...], kernel: Kernel) -> None:
    """Register the implementation of ``mmscconv::op``, which refuses forward-mode AD.

    Raises:
        RuntimeError: From the op, where forward-mode AD is active: the result would have no tangent, which means 0.
    """

    @functools.wraps(kernel)
    def without_tangents(*arguments: Any) -> Any:
        if forward_mode():
            raise RuntimeError(f"mmscconv::{op} has no forward-mode derivative: backend='plain' has")
        register_formulas()
        return kernel(*arguments)

    torch.library.impl(f'mmscconv::{op}', devices)(without_tangents)


def register_no_gradient(op: str) -> None:
    """Let backward through ``mmscconv::op``, the backward of another op, raise RuntimeError instead of giving 0."""

    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(
            f"mmscconv::{op} has no derivative: take that of the layer with create_graph=True, or use backend='plain'"
        )

    torch.library.register_autograd(f'mmscconv::{op}', backward)
