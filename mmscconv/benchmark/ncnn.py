"""Export of a model to ncnn, and its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmscconv.errors import UserError
from mmscconv.export.ncnn_file import convert, load


def network_of(model: nn.Module, x: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return a function that runs ``model``, exported for the size of ``x``, on ``x`` in ncnn, image after image.

    Raises:
        UserError: The model cannot be exported; ``x`` is on a GPU.
    """
    if x.device.type != 'cpu':
        raise UserError('the runner ncnn is for the CPU: --device cpu')
    flat = _Flat(model).eval()
    with torch.no_grad():
        outputs = [f'y{i}' for i in range(len(flat(x[:1])))]
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'model.param'
        convert(flat, [x[:1]], file, ['x'], outputs)
        return load(file, ['x'], outputs)


class _Flat(nn.Module):
    """A model whose outputs are one tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(x)))
