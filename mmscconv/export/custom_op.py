"""SCConv as one op of ONNX Runtime, ``mmscconv::SCConv``: the deploy form's kernels in a custom-op library."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.layers import SCConv
from mmscconv.layers.deploy import DeployedCRU
from mmscconv.layers.fused import OpArguments, op_arguments
from mmscconv.layers.sru import SRU
from mmscconv.ops.compiled import ONNXRUNTIME_OP, build
from mmscconv.ops.native import pooled_size
from mmscconv.ops.packing import PANEL

OP = 'mmscconv::SCConv'


def library() -> Path:
    """Return the library of the op, compiled for this machine's processor on first use.

    Raises:
        UserError: The library cannot be compiled.
    """
    built = build(ONNXRUNTIME_OP)
    if isinstance(built, str):
        raise UserError(f'the library of {OP} cannot be compiled (it takes GCC and Linux): {built}')
    return built


def copy_library(to: Path) -> None:
    """Write the library to ``to``, beside the model that needs it."""
    shutil.copyfile(library(), to)


def with_custom_op(network: nn.Module) -> tuple[nn.Module, int]:
    """Return a copy of ``network`` whose SCConvs are exported as the op where it can compute them, and their number.

    The op computes SCConvs of ``arrangement='S+C'`` in deploy form with both branches and
    a pool without overlapping windows; the others keep their plain form.
    """
    network = copy.deepcopy(network)
    layers = [m for m in network.modules() if isinstance(m, SCConv) and _fits(m)]
    for layer in layers:
        layer.cru = cast('DeployedCRU', _Exported(cast('DeployedCRU', layer.cru)))
    return network, len(layers)


def _fits(layer: SCConv) -> bool:
    return layer.arrangement == 'S+C' and isinstance(layer.cru, DeployedCRU) and layer.cru.packed is not None


class _Exported(nn.Module):
    """Stand-in for a CRU, exported as one op with the SRU in front; computes nothing."""

    def __init__(self, cru: DeployedCRU) -> None:
        super().__init__()
        self.cru = cru

    def after(self, sru: SRU, x: Tensor) -> Tensor:
        """Return zeros in the shape of ``cru(sru(x))``, traced as the op."""
        return cast('Tensor', _Op.apply(x, op_arguments(self.cru, sru, torch.float32)))


class _Op(torch.autograd.Function):
    """The op in a trace; csrc/onnxruntime/scconv_op.c lists its inputs and attributes."""

    @staticmethod
    def forward(_: Any, x: Tensor, arguments: OpArguments) -> Tensor:
        return x.new_zeros(len(x), arguments.channels[3], *pooled_size(x.shape[2:], arguments.window.stride))

    @staticmethod
    def symbolic(g: Any, x: Any, arguments: OpArguments) -> Any:
        of_sru, squeezes, transform, channels, window, centre, relu = arguments
        scale, shift, num_groups, eps, threshold, hard = of_sru
        # The op reads and writes channels last. ONNX Runtime's convolutions use a blocked layout of their own;
        # ONNX Runtime merges these transpositions with the reordering around its convolutions.
        rows = g.op('Transpose', x, perm_i=(0, 2, 3, 1))
        y = g.op(
            OP, rows, *(_constant(g, t) for t in (scale, shift, *squeezes, *transform)),
            num_groups_i=num_groups, eps_f=eps, threshold_f=threshold, hard_i=int(hard), channels_i=channels,
            groups_i=window.groups, window_i=window.numbers, centre_i=-1 if centre is None else centre,
            relu_i=int(relu), panel_i=PANEL,
        )  # fmt: skip
        y.setType(x.type().with_sizes([None, None, None, channels[3]]))
        return g.op('Transpose', y, perm_i=(0, 3, 1, 2))


def _constant(g: Any, tensor: Tensor | None) -> Any:
    if tensor is not None:
        return g.op('Constant', value_t=tensor.detach().float())
    nothing = g.op('prim::Constant')
    nothing.setType(torch._C.OptionalType.ofTensor())
    return nothing
