"""The dtypes that the joined kernels take, with and without autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from mmscconv import ops


def kernels_take(x: Tensor, *weights: Tensor, norms: bool = False) -> bool:
    """Return whether the joined kernels give what convolutions of ``x`` with ``weights`` give, also under autocast.

    They read and write maps in fp32 or bf16, and compute in fp32. Under autocast to bf16 the maps between
    convolutions are bf16, whatever the weights are.

    Args:
        x: (N, C, H, W).
        weights: Weights of convolutions, or of norms.
        norms: Whether ``weights`` are those of norms, which take maps in bf16 with weights in fp32.
    """
    allowed = {x.dtype, torch.float32} if norms else {x.dtype}
    if torch.is_autocast_enabled('cpu'):
        if torch.get_autocast_dtype('cpu') is not x.dtype:
            return False
        allowed = {x.dtype, torch.float32}
    return all(t.dtype in allowed for t in weights) and ops.fits(x)


def as_fp32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()
