"""Parameters and operations of a module, by two rules, from one forward pass.

``macs``: multiply-adds of convolutions, linear layers and attention's products of maps; a multiply-add counts as one.

``paper_ops``: the paper's FLOPs columns, by rules inferred from rows that this count
reproduces to the last digit. On top of ``macs``: 1 per output of a biased
convolution and of average pooling, 2 per element of BN, and 1 per input and
output of global average pooling. GN, activations, max-pooling and element-wise
arithmetic count 0, and so do GN's parameters.

The counter is torch's, with formulas for the paper's additions. Large images run as
fake tensors, which have a shape and no data: counting a detector takes seconds, while
counters that trace, such as fvcore's, compute the network. A network with operations
that fake tensors cannot run is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from mmscconv import ops
from mmscconv.complexity.unseen import FLOPS_PER_OPERATION, formulas, nothing_unseen, visible

aten = torch.ops.aten
# Pixels up to which computing is faster than the overhead of fake tensors.
LARGEST_COMPUTED = 224 * 224


@dataclass(frozen=True)
class Complexity:
    """Counts of a network for one image.

    Args:
        params: Number of parameters.
        group_norm_params: Those of GN among them.
        macs: Multiply-adds of convolutions and linear layers.
        paper_ops: Operations by the rule of the paper's FLOPs columns, in the module's docstring.
        stages: Counts of the network's stages by name: its children, but for ``backbone`` and lists, which give their
            own children.
        parts: Counts of its children by name.
    """

    params: int
    group_norm_params: int
    macs: int
    paper_ops: int
    stages: dict[str, Complexity] = field(default_factory=dict)
    parts: dict[str, Complexity] = field(default_factory=dict)

    @property
    def paper_params(self) -> int:
        """Parameters by the paper's rule, without GN's."""
        return self.params - self.group_norm_params

    def __add__(self, other: Complexity) -> Complexity:
        """Return the counts of both together, without their parts."""
        return Complexity(
            self.params + other.params,
            self.group_norm_params + other.group_norm_params,
            self.macs + other.macs,
            self.paper_ops + other.paper_ops,
        )


def count(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count a copy of ``model`` in eval mode on one RGB image; ``model`` itself is unchanged.

    Args:
        model: Network that takes a tensor (1, 3, H, W).
        shape: (H, W) of the image in pixels.

    Raises:
        UserError: The work of a layer cannot be seen by torch's counter.
    """
    if prod(shape) > LARGEST_COMPUTED:
        try:
            return _count(model, shape, FakeTensorMode(allow_non_fake_inputs=True))
        except RuntimeError:  # an operation outside of torch, or one that asks for values; or the network's own error
            pass
    return _count(model, shape, nullcontext())


def _count(model: nn.Module, shape: tuple[int, int], tensors: AbstractContextManager[Any]) -> Complexity:
    model = copy.deepcopy(model)
    model.eval()
    common = formulas()
    macs = FlopCounterMode(display=False, custom_mapping=common)
    paper = FlopCounterMode(display=False, custom_mapping={**common, **PAPER_FORMULAS})
    with torch.no_grad(), ops.plain_only(), visible(), tensors, macs, paper, nothing_unseen(model, macs):
        model(torch.zeros(1, 3, *shape))

    def complexity(module: nn.Module, name: str) -> Complexity:
        norms = [m for m in module.modules() if isinstance(m, nn.GroupNorm)]
        multiply_adds, paper_ops = (
            sum(counter.get_flop_counts().get(name, {}).values()) // FLOPS_PER_OPERATION for counter in (macs, paper)
        )
        return Complexity(
            sum(p.numel() for p in module.parameters()),
            sum(p.numel() for norm in norms for p in norm.parameters()),
            multiply_adds,
            paper_ops,
        )

    root = type(model).__name__
    whole = complexity(model, 'Global')
    stages = {name: complexity(module, f'{root}.{name}') for name, module in stage_modules(model)}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):  # not called itself: torch counts nothing for it
            below = [stage for other, stage in stages.items() if other.startswith(f'{name}.')]
            whole.parts[name] = sum(below, Complexity(0, 0, 0, 0))
        else:
            whole.parts[name] = complexity(child, f'{root}.{name}')
    whole.stages.update(stages)
    for found in (whole.parts, whole.stages):
        for name in [name for name, part in found.items() if not (part.params or part.paper_ops)]:
            del found[name]
    return whole


def stage_modules(model: nn.Module, prefix: str = '') -> Iterable[tuple[str, nn.Module]]:
    """Yield a network's children by name; ``backbone`` and module lists yield their own children instead."""
    for name, child in model.named_children():
        if name == 'backbone' or isinstance(child, nn.ModuleList):
            yield from stage_modules(child, f'{prefix}{name}.')
        else:
            yield prefix + name, child


def _convolution(
    x: torch.Size, weight: torch.Size, bias: torch.Size | None, *args: Any, out_shape: torch.Size, **kwargs: Any
) -> int:
    transposed = args[3]
    flops = conv_flop_count(list(x), list(weight), list(out_shape), transposed=transposed)
    return flops + (0 if bias is None else FLOPS_PER_OPERATION * prod(out_shape))


def _formula(operations: Callable[[torch.Size, torch.Size], int]) -> Callable[..., int]:
    """Return a formula for torch's counter from a function of the first input's and the first output's shape."""

    def flops(x: torch.Size, *args: Any, out_shape: Any, **kwargs: Any) -> int:
        # An operation with several outputs has a tuple of their shapes.
        out = out_shape if isinstance(out_shape, torch.Size) else out_shape[0]
        return FLOPS_PER_OPERATION * operations(x, out)

    return flops


_batch_norm = _formula(lambda x, out: 2 * prod(out))
_pool = _formula(lambda x, out: prod(out))
# 5-D means are GN's group statistics, not pooling; GN counts 0 by the paper's rule.
_global_pool = _formula(lambda x, out: prod(x) + prod(out) if len(x) == 4 else 0)

PAPER_FORMULAS: dict[Any, Callable[..., int]] = {
    aten.convolution: _convolution,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _global_pool,
    aten.mean: _global_pool,
}
