"""CRU, and SRU with the CRU behind it, in as few kernels as possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mmscconv import ops
from mmscconv.layers.fused.for_exports import exported, through_halves
from mmscconv.layers.fused.squeezes import normed, one_kernel_squeezes, squeezed, squeezed_by_kernel
from mmscconv.layers.fused.transform import transformed
from mmscconv.layers.intact import intact, undisturbed
from mmscconv.layers.recompute import recomputed

if TYPE_CHECKING:
    from mmscconv.layers.cru import CRU
    from mmscconv.layers.sru import SRU


def cru(layer: CRU, x: Tensor) -> Tensor | None:
    """CRU with its squeezes as one convolution, and as few kernels as possible from GWC to fuse."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain' or not x.numel():
        return exported(layer, layer.squeeze(x)) if ops.exporting() else None
    return transformed(layer, normed(layer, squeezed(layer, x), backend), backend)


def sru_then_cru(layer: CRU, front_sru: SRU, x: Tensor) -> Tensor | None:
    """``layer(front_sru(x))`` without keeping X^w for backward."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain':
        return through_halves(layer, front_sru, x)
    if not x.numel() or not undisturbed(front_sru, layer):
        return None
    if not intact(front_sru, 'gn') or not intact(layer, 'squeeze_up', 'squeeze_low', 'pool'):
        branches = normed(layer, squeezed(layer, front_sru(x)), backend)
    elif one_kernel_squeezes(layer, front_sru, x, backend):
        branches = squeezed_by_kernel(layer, front_sru, x)
    else:
        before_norms = recomputed(
            lambda x: squeezed(layer, front_sru(x)), x, front_sru, layer.squeeze_up, layer.squeeze_low, random=False
        )
        branches = normed(layer, before_norms, backend)
    return transformed(layer, branches, backend)
