"""Layers whose work torch's counter does not see by itself: brought into its sight, or refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mmscconv.errors import UserError

# torch counts a multiply-add as two.
FLOPS_PER_OPERATION = 2
# mmcv's deformable convolutions: the class of the function, and a convolution in its place.
_DEFORMABLE: dict[tuple[str, str], Callable[..., Tensor]] = {
    ('mmcv.ops.deform_conv', 'DeformConv2dFunction'): (
        lambda context, x, offset, weight, *window: torch.conv2d(x, weight, None, *window[:4])
    ),
    ('mmcv.ops.modulated_deform_conv', 'ModulatedDeformConv2dFunction'): (
        lambda context, x, offset, mask, weight, bias, *window: torch.conv2d(x, weight, bias, *window[:4])
    ),
}


@contextmanager
def visible() -> Iterator[None]:
    """Let layers run by operations that torch's counter sees, as many as their own.

    A deformable convolution of mmcv is no operation of torch, and takes no fake tensors: a convolution of the same
    window stands in. ``nn.MultiheadAttention`` in eval mode is one operation, unless its fast path is off.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        for (module, name), plain in _DEFORMABLE.items():
            if module in sys.modules:
                function = getattr(sys.modules[module], name)
                stack.callback(setattr, function, 'forward', function.__dict__['forward'])
                function.forward = staticmethod(plain)
        yield


# Layers whose weight is no factor of a product: a table to look up, and scales of a norm.
_NO_PRODUCT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)


@contextmanager
def nothing_unseen(model: nn.Module, counter: FlopCounterMode) -> Iterator[None]:
    """Refuse a layer with a weight of two or more dimensions that ran and added nothing to the counter.

    Raises:
        UserError: ``model`` has such a layer.
    """
    added = {module: 0 for module in model.modules() if _has_product(module)}
    ran: set[nn.Module] = set()
    before: list[int] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        if module in added:
            before.append(counter.get_total_flops())

    def end(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in added:
            added[module] += counter.get_total_flops() - before.pop()
            if any(t.numel() for t in tree_leaves(output) if isinstance(t, Tensor)):
                ran.add(module)

    # Hooks of all modules, as the counter's: those of a layer could change the way that it runs.
    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(begin).remove)
        stack.callback(register_module_forward_hook(end).remove)
        yield
    unseen = {name: module for name, module in model.named_modules() if module in ran and not added[module]}
    if unseen:
        name, module = next(iter(unseen.items()))
        others = f', and of {len(unseen) - 1} other layers' if len(unseen) > 1 else ''
        raise UserError(
            f"cannot be counted: torch's counter does not see the operations of the {type(module).__name__} "
            f'{name}{others}'
        )


def _has_product(module: nn.Module) -> bool:
    weights = [p for name, p in module._parameters.items() if p is not None and name.startswith('weight')]
    return any(p.dim() > 1 for p in weights) and not isinstance(module, _NO_PRODUCT)


def _deformable(x: torch.Size, weight: torch.Size, *args: Any, out_shape: torch.Size, **kwargs: Any) -> int:
    return FLOPS_PER_OPERATION * prod(out_shape) * prod(weight[1:])


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Return the operations of queries with keys, and of their weights with values."""
    return FLOPS_PER_OPERATION * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas for operations that torch's counter lacks; torchvision's operation is there once it is loaded."""
    found: dict[Any, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    deformable = getattr(torch.ops.torchvision, 'deform_conv2d', None)
    return found if deformable is None else {**found, deformable: _deformable}
