"""Calls of the C kernels with their memory before and after, as the package makes them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mmscconv.ops import compiled
from mmscconv.ops.prototypes import Argument


@dataclass(frozen=True)
class Pointer:
    """The address of byte ``offset`` of a call's region number ``region``, where values of ``dtype`` begin."""

    region: int
    offset: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Region:
    """A piece of memory, all of one storage: arguments that share memory also share it when they are replayed.

    Attributes:
        before, after: Its bytes, (n) uint8.
    """

    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Call:
    """A call of a function of ``csrc/kernels.h``."""

    name: str
    arguments: tuple[float | Pointer | None, ...]
    regions: tuple[Region, ...]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Give the list of the calls that the package makes inside of the block.

    Memory that PyTorch leaves uninitialized is filled with NaN, so that every recording is the same, and a kernel that
    reads such memory is found.
    """
    calls: list[Call] = []

    def call(name: str, *arguments: Argument) -> None:
        tensors = [_tensor(argument) for argument in arguments]
        storages = {t.untyped_storage().data_ptr(): t for t in tensors if t is not None}
        places = {address: i for i, address in enumerate(storages)}
        before = [_bytes(t) for t in storages.values()]
        compiled.call(name, *arguments)
        regions = tuple(Region(b, _bytes(t)) for t, b in zip(storages.values(), before, strict=True))
        values = (_value(a, t, places) for a, t in zip(arguments, tensors, strict=True))
        calls.append(Call(name, tuple(values), regions))

    modules = [m for name, m in sys.modules.items() if name.startswith('mmscconv.ops.') and m is not compiled]
    with ExitStack() as stack:
        stack.enter_context(_uninitialized_memory_filled())
        for module in modules:
            if getattr(module, 'call', None) is compiled.call:
                stack.enter_context(patch.object(module, 'call', call))
        yield calls


@contextmanager
def _uninitialized_memory_filled() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    filled: Any = torch.utils.deterministic
    before = filled.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filled.fill_uninitialized_memory = True
    try:
        yield
    finally:
        filled.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(deterministic)


def _tensor(argument: Argument) -> Tensor | None:
    if isinstance(argument, ctypes.Array):
        return torch.frombuffer(argument, dtype=torch.int64)
    return argument if isinstance(argument, Tensor) else None


def _bytes(tensor: Tensor) -> Tensor:
    """Return a copy of the whole storage."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def _value(argument: Argument, tensor: Tensor | None, places: dict[int, int]) -> float | Pointer | None:
    """Return the recorded form of an argument; ``places``: the regions' numbers by address."""
    if tensor is not None:
        start = tensor.untyped_storage().data_ptr()
        return Pointer(places[start], tensor.data_ptr() - start, tensor.dtype)
    assert argument is None or isinstance(argument, (int, float))
    return argument
