"""Computing once more in backward what is cheaper to compute than to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from mmscconv import ops

T = TypeVar('T')


def recomputed(function: Callable[[Tensor], T], x: Tensor, module: nn.Module | None = None) -> T:
    """Run ``function(x)``; backward recomputes its intermediate results, which are not kept.

    The first computation alone updates the running statistics of norms in ``module``.
    Without gradients this is a plain call. So it is under torch.compile, whose own
    partitioner decides what to keep, and inside of torch.func's transforms, which do
    not take the hooks that recomputing needs.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or ops.transformed():
        return function(x)
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in these layers is random
        context_fn=lambda: (nullcontext(), statistics_kept(module)),
    )


def statistics_kept(module: nn.Module | None) -> AbstractContextManager[Any]:
    """Return a context in which no call changes the running statistics of norms in ``module``.

    It can be entered again, as a second backward pass over one graph does, and
    changes no module, which other threads may be using.
    """
    norms = [] if module is None else [m for m in module.modules() if isinstance(m, _NormBase)]
    buffers = [b for norm in norms for b in norm.buffers(recurse=False)]
    return _CopiesInstead(buffers) if buffers else nullcontext()


class _CopiesInstead(AbstractContextManager[None]):
    """A context in which this thread's operations see copies of ``tensors``."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        self.entered = local()

    def __enter__(self) -> None:
        mode = _Replacing({id(t): t.detach().clone() for t in self.tensors})
        self.entered.modes = [*getattr(self.entered, 'modes', []), mode]
        mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.entered.modes.pop().__exit__(*error)


class _Replacing(TorchFunctionMode):
    """Hands each operation other tensors in place of those whose id is a key."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        self.others = others

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(lambda a: self.others.get(id(a), a), (args, kwargs or {}))
        return function(*args, **kwargs)
