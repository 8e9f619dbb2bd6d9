"""Recomputation in backward of results that are cheaper to compute than to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import local
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from mmscconv import ops
from mmscconv.layers.hooked import ALL_HOOKED, all_are_hooked

T = TypeVar('T')


def recomputed(function: Callable[[Tensor], T], x: Tensor, *modules: nn.Module | None, random: bool) -> T:
    """Run ``function(x)``; backward recomputes its intermediate results.

    Backward sees the weights and buffers of the forward pass, and changes none: forward alone updates running
    statistics. This is a plain call

    * without gradients;
    * in graphs, as under torch.compile, whose own partitioner decides what to keep;
    * inside torch.func's transforms, which refuse the hooks that recomputing needs, and where saved-tensor hooks are
      disabled;
    * under a TorchFunctionMode, which would not see the recomputation.

    A dispatch mode that runs during one of both passes alone does not change which kernels run.

    Args:
        function: Function of ``x`` and of the weights of ``modules``.
        x: (N, C, H, W).
        modules: Modules that ``function`` calls.
        random: Whether to draw the same random numbers again, for an adapter may drop values.

    Raises:
        RuntimeError: In backward, if ``x`` or a weight was changed in place since.
    """
    if not torch.is_grad_enabled() or ops.becoming_graph() or ops.transformed() or ops.overridden() or _no_hooks():
        return function(x)
    looked_on, hooked = ops.looked_on(), all_are_hooked()
    before = _AsBefore(x, [m for module in modules if module is not None for m in module.modules()])
    strides, layout = x.stride(), ops.layout_of(x)

    def run(x: Tensor) -> T:
        # Saved-tensor hooks may return x in another layout, for which other kernels would run.
        with ops.LOOKED_ON.as_before(looked_on), ALL_HOOKED.as_before(hooked):
            return function(x if x.stride() == strides else x.contiguous(memory_format=layout))

    return checkpoint(
        run,
        x,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: (nullcontext(), before),
    )


def _no_hooks() -> bool:
    """Return whether saved-tensor hooks are disabled."""
    return torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None


def statistics_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which no call changes the buffers of ``module``, running statistics among them."""
    return _AsBefore(None, list(module.modules()))


def same_random_numbers(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Return a function that makes contexts, in which random numbers are those that would be drawn now."""
    devices = [] if device.type == 'cpu' else [device]
    state = torch.get_rng_state()
    states = [torch.get_device_module(d).get_rng_state(d) for d in devices]

    @contextmanager
    def as_now() -> Iterator[None]:
        with torch.random.fork_rng(devices, device_type=device.type if devices else 'cuda'):
            torch.set_rng_state(state)
            for d, s in zip(devices, states, strict=True):
                torch.get_device_module(d).set_rng_state(s, d)
            yield

    return as_now


class _AsBefore(AbstractContextManager[None]):
    """A context in which this thread's operations see the tensors that ``modules`` had when it was created.

    It can be entered again, as a second backward pass over one graph does. It changes
    no module: other threads may be using them.
    """

    def __init__(self, x: Tensor | None, modules: list[nn.Module]) -> None:
        self.parameters = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
        self.buffers = [
            (m, name, b.detach().clone()) for m in modules for name, b in m._buffers.items() if b is not None
        ]
        checked = [p for _, _, p in self.parameters] + ([] if x is None else [x])
        self.versions = [(t, t._version) for t in checked if not t.is_inference()]
        self.entered = local()

    def __enter__(self) -> None:
        if any(t._version != version for t, version in self.versions):
            raise RuntimeError(
                'a variable needed for gradient computation has been modified by an inplace operation: the input or a '
                'weight of a layer that backward recomputes'
            )
        pairs: list[tuple[Tensor | None, Tensor]] = [
            (m._parameters.get(name), p) for m, name, p in self.parameters if m._parameters.get(name) is not p
        ]
        current = [(m, name, m._buffers.get(name)) for m, name, _ in self.buffers]
        pairs += [(b, old.clone()) for (_, _, b), (_, _, old) in zip(current, self.buffers, strict=True)]
        mode: AbstractContextManager[Any] = _Replacing(pairs) if pairs else nullcontext()
        self.entered.stack = [*getattr(self.entered, 'stack', []), (mode, current)]
        mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        mode, buffers = self.entered.stack.pop()
        mode.__exit__(*error)
        for module, name, buffer in buffers:
            # A module may have assigned a result to its buffer, as torch's spectral norm does.
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer


class _Replacing(TorchFunctionMode):
    """Passes each operation the second tensor of a pair instead of the first."""

    def __init__(self, pairs: list[tuple[Tensor | None, Tensor]]) -> None:
        super().__init__()
        self.pairs = pairs  # keeps the current tensors alive: other tensors could get their ids
        self.replacements = {id(current): old for current, old in pairs if current is not None}

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        args, kwargs = tree_map(lambda a: self.replacements.get(id(a), a), (args, kwargs or {}))
        return function(*args, **kwargs)
