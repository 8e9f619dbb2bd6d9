"""Computing once more in backward what is cheaper to compute than to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

T = TypeVar('T')


def recomputed(function: Callable[[Tensor], T], x: Tensor, module: nn.Module | None = None) -> T:
    """Return ``function(x)``, of whose intermediate results none is kept for backward.

    Running statistics of the norms in ``module`` are updated by the first
    computation alone. Without gradients this is a plain call; so it is under
    torch.compile, whose own partitioner decides what to keep.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    norms = [m for m in module.modules() if isinstance(m, _NormBase)] if module is not None else []
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in these layers is random
        context_fn=lambda: (nullcontext(), _statistics_kept(norms)),
    )


@contextmanager
def _statistics_kept(norms: list[_NormBase]) -> Iterator[None]:
    # Momentum 0 and not "no statistics": checkpoint wants the same tensors kept as the first time.
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
