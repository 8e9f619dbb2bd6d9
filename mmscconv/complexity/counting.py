"""Parameters and operations of a module, by two rules, from one forward pass.

``macs``: multiply-adds of convolutions and linear layers; one multiply-add is one.

``paper_ops``: what the paper's FLOPs columns count, as inferred from its rows that
come out to the last digit. On top of ``macs``: 1 per output of a biased
convolution and of average pooling, 2 per element of BN, and 1 per input and
output of global average pooling. GN, activations, max-pooling and element-wise
arithmetic cost nothing, and GN's parameters are not counted either.

Large images run as fake tensors, which have a shape and no data: a detector's costs
seconds. Counters that trace, such as fvcore's, have to compute the network.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
MACS = ('convolution', 'linear')
# Up to here computing takes less time than what fake tensors add to each operation.
LARGEST_COMPUTED = 224 * 224


@dataclass(frozen=True)
class Complexity:
    """Counts for one image; ``stages`` holds those of the parts, by name."""

    params: int
    group_norm_params: int
    macs: int
    paper_ops: int
    stages: dict[str, Complexity] = field(default_factory=dict)

    @property
    def paper_params(self) -> int:
        """Parameters as the paper counts them: without GN's."""
        return self.params - self.group_norm_params


def count(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count ``model`` in eval mode on one RGB image of ``shape`` (H, W); ``model`` itself is left as it is."""
    model = copy.deepcopy(model)
    model.eval()
    operations = OperationCounter()
    stages = dict(stage_modules(model))
    for name, module in stages.items():
        operations.watch(name, module)
    fake = nullcontext() if prod(shape) <= LARGEST_COMPUTED else FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake, operations:
        model(torch.zeros(1, 3, *shape))
    parts = {name: _complexity(module, operations.counts[name]) for name, module in stages.items()}
    whole = _complexity(model, operations.total)
    return Complexity(
        whole.params,
        whole.group_norm_params,
        whole.macs,
        whole.paper_ops,
        {name: part for name, part in parts.items() if part.params or part.paper_ops},
    )


def stage_modules(model: nn.Module, prefix: str = '') -> Iterable[tuple[str, nn.Module]]:
    """Yield the parts of a network: its children, with those of ``backbone`` and of lists in place of these."""
    for name, child in model.named_children():
        if name == 'backbone' or isinstance(child, nn.ModuleList):
            yield from stage_modules(child, f'{prefix}{name}.')
        else:
            yield prefix + name, child


class OperationCounter(TorchDispatchMode):
    """Counts operations by kind while it is entered: in all, and inside of the modules that it watches."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}
        self._inside: list[str] = []

    def watch(self, name: str, module: nn.Module) -> None:
        """Count what runs inside of ``module`` under ``name``, too."""
        self.counts[name] = Counter()
        module.register_forward_pre_hook(lambda *_: self._inside.append(name))
        module.register_forward_hook(lambda *_: self._inside.remove(name))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = RULES.get(func.overloadpacket)
        if rule is not None:
            operations = rule(args, out[0] if isinstance(out, tuple) else out)
            for counter in (self.total, *(self.counts[name] for name in self._inside)):
                counter.update(operations)
        return out


def _complexity(module: nn.Module, operations: Counter[str]) -> Complexity:
    norms = (m for m in module.modules() if isinstance(m, nn.GroupNorm))
    return Complexity(
        params=sum(p.numel() for p in module.parameters()),
        group_norm_params=sum(p.numel() for norm in norms for p in norm.parameters()),
        macs=sum(operations[kind] for kind in MACS),
        paper_ops=operations.total(),
    )


def _convolution(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    x, weight, bias, *_, transposed, _, _ = args
    # Each output of a convolution, each input of a transposed one, meets one filter.
    places = x if transposed else out
    macs = places.shape[0] * prod(places.shape[2:]) * weight.numel()
    return {'convolution': macs, 'bias': 0 if bias is None else out.numel()}


def _matrices(first: int) -> Callable[[tuple[Any, ...], Tensor], dict[str, int]]:
    """Return the rule of a product whose left matrix is argument ``first``."""
    return lambda args, out: {'linear': out.numel() * args[first].shape[-1]}


def _batch_norm(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    return {'batch_norm': 2 * out.numel()}


def _pool(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    return {'pool': out.numel()}


def _global_pool(args: tuple[Any, ...], out: Tensor) -> dict[str, int]:
    return {'pool': args[0].numel() + out.numel()}


RULES: dict[Any, Callable[[tuple[Any, ...], Tensor], dict[str, int]]] = {
    aten.convolution: _convolution,
    aten.addmm: _matrices(1),
    aten.mm: _matrices(0),
    aten.bmm: _matrices(0),
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.cudnn_batch_norm: _batch_norm,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _global_pool,
    aten.mean: _global_pool,
}
