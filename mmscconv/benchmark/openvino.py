"""Export of a model to OpenVINO, and its program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.export.onnx_file import export_onnx
from mmscconv.export.openvino_file import compile_file, runs


def program_of(model: nn.Module, x: Tensor, dtype: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """Return a function that runs ``model``, exported for the shape of ``x``, on ``x`` in OpenVINO.

    Args:
        model: In any form.
        x: (N, C, H, W).
        dtype: ``'fp32'`` or ``'bf16'``.

    Raises:
        UserError: The model cannot be exported; ``x`` is on a GPU; the processor has no bf16.
    """
    if x.device.type != 'cpu':
        raise UserError('the runner openvino is for the CPU: --device cpu')
    model.eval()
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        with torch.no_grad():
            export_onnx(model, (x,), file, ['x'])
        return runs(compile_file(file, dtype), shared=True)
