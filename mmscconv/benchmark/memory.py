"""Memory of a training step: activations saved for backward, and the device's peak."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def saved_activations(forward: Callable[[], object], given: Iterable[Tensor], kept: Iterable[Tensor]) -> int:
    """Return the bytes that ``forward`` keeps for backward: each storage once, whole.

    Args:
        forward: Computes with gradients; its result is held until all is counted.
        given: Parameters and buffers; they do not count, nor do autocast's copies of them.
        kept: Inputs, which always count: a layer that recomputes keeps its input
            itself, where autograd's hooks do not see it.
    """
    excluded = {t.untyped_storage().data_ptr() for t in given}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not _is_cast_parameter(tensor):
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(size for pointer, size in storages.items() if pointer not in excluded)


def _is_cast_parameter(tensor: Tensor) -> bool:
    """Return whether a tensor is a parameter's copy in another dtype."""
    function = tensor.grad_fn
    if function is None or function.name() != 'ToCopyBackward0':
        return False
    source = getattr(function.next_functions[0][0], 'variable', None)
    return isinstance(source, nn.Parameter)


class DevicePeak:
    """Peak of device memory above the amount in use when the object was created; None off CUDA.

    Create the object before a candidate's model and call :meth:`during` after the first
    optimizer step: the peak then includes weights, gradients and optimizer state, and
    excludes other candidates.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self._allocated()

    def during(self, run: Callable[[], object]) -> int | None:
        """Return the peak in bytes while ``run`` runs."""
        if self.device.type != 'cuda':
            return None
        self._allocated()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - self.before

    def _allocated(self) -> int:
        if self.device.type != 'cuda':
            return 0
        gc.collect()
        torch.cuda.synchronize(self.device)
        return torch.cuda.memory_allocated(self.device)
