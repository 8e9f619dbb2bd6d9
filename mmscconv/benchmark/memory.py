"""Memory that a training step keeps for backward, and its peak on a device."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def saved_activations(forward: Callable[[], object], given: Iterable[Tensor], kept: Iterable[Tensor]) -> int:
    """Return the bytes that ``forward`` keeps for backward: each storage once, whole.

    Args:
        forward: Computes with gradients; its result is held until all is counted.
        given: Parameters and buffers, which are there anyway and do not count, nor do
            autocast's copies of them.
        kept: Inputs, which count in any case: the one in front of a layer that
            recomputes is kept by the layer and not by autograd.
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
    """Whether a tensor is a copy of a parameter in another dtype."""
    made_by = tensor.grad_fn
    if made_by is None or made_by.name() != 'ToCopyBackward0':
        return False
    source = getattr(made_by.next_functions[0][0], 'variable', None)
    return isinstance(source, nn.Parameter)


class DevicePeak:
    """The most device memory in use, above what was in use when this was made; None off CUDA.

    Make it before a candidate's model and ask :meth:`during` once the optimizer has
    its state: then weights, gradients and state are in, and other candidates out.
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
