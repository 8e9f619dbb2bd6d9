"""Mixed precision on a CPU, for which mmengine has no wrapper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's wrapper with forward passes under bf16 autocast.

    Weights, gradients and the optimizer's state stay in fp32. bf16 has the range of fp32, so
    losses are not scaled.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to bf16, and accumulate gradients as mmengine does."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def multiplies_bf16() -> bool:
    """Return True on an x86 processor with bf16 instructions (AVX512-BF16 or AMX); False where torch cannot tell."""
    names = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')  # torch 2.6 and newer
    return any(getattr(torch.cpu, name, bool)() for name in names)
