"""SRU by one kernel or, in graphs, in few operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmscconv import identities, ops
from mmscconv.layers.fused.replacing import Halves
from mmscconv.layers.intact import intact, undisturbed

if TYPE_CHECKING:
    from mmscconv.layers.sru import SRU

SRUArguments = tuple[Tensor, Tensor, int, float, float, bool]
_group_norm_is_kept = False


def sru(layer: SRU, x: Tensor) -> Tensor | None:
    """SRU by one kernel or, in graphs, with one affine."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain':
        if not ops.becoming_graph() or not undisturbed(layer.gn):
            return None
        if ops.exporting() or torch.is_grad_enabled() or ops.transformed():
            return torch.cat(sru_halves(layer, x), dim=1)
        # With gradients, torch's group norm may end the process: see equations.gn.
        return identities.sru(x, *sru_arguments(layer, x.dtype), one_operator=True)
    if not x.numel() or not intact(layer, 'gn'):
        return None
    return ops.sru(x, *sru_arguments(layer, x.dtype), backend=backend)


def sru_halves(layer: SRU, x: Tensor) -> Halves:
    """SRU's output in halves, for graphs: those that are exported, and those that torch.compile differentiates."""
    return identities.sru_halves(x, *sru_arguments(layer, x.dtype), one_operator=_group_norm_is_kept)


@contextmanager
def group_norm_kept() -> Iterator[None]:
    """Let exported graphs have GN as one operator, for runtimes that fuse nothing and have a kernel for it."""
    global _group_norm_is_kept
    _group_norm_is_kept = True
    try:
        yield
    finally:
        _group_norm_is_kept = False


def sru_arguments(layer: SRU, dtype: torch.dtype) -> SRUArguments:
    """Return the arguments of :func:`mmscconv.ops.sru` that follow an input of ``dtype``."""
    gn = layer.gn
    scale, shift = identities.affine(gn.weight, gn.bias, gn.eps, dtype)
    return scale, shift, gn.num_groups, gn.eps, layer.logit_threshold, layer.gate == 'hard'
