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
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        # In training this only omits the update; in eval it would change the result.
        norm.track_running_stats = norm.track_running_stats and not norm.training
    try:
        yield
    finally:
        for norm, tracked in zip(norms, tracking, strict=True):
            norm.track_running_stats = tracked
