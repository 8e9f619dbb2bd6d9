"""Export of a model to ONNX Runtime, and its session."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmscconv.errors import UserError
from mmscconv.export import custom_op as op
from mmscconv.export.onnx_file import Provider, export_onnx, open_session


def session_of(model: nn.Module, x: Tensor, custom_op: bool = False) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs ``model``, exported for the shape of ``x``, on ``x`` in ONNX Runtime.

    Args:
        model: In its deploy form with ``custom_op``.
        x: (N, C, H, W).
        custom_op: Run each SCConv as one op, if the op can compute it.

    Raises:
        UserError: The model cannot be exported; on a GPU, no CUDA provider or ``custom_op``.
    """
    import onnxruntime

    providers: list[Provider] = ['CPUExecutionProvider']
    if x.device.type == 'cuda':
        if 'CUDAExecutionProvider' not in onnxruntime.get_available_providers():
            raise UserError('this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu, or --device cpu')
        if custom_op:
            raise UserError(f'{op.OP} runs on the CPU alone: --device cpu')
        providers.insert(0, ('CUDAExecutionProvider', {'device_id': x.device.index or 0}))
    model.eval()
    with torch.no_grad():
        outputs = [torch.empty_like(y).contiguous() for y in tree_leaves(model(x))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        export_onnx(op.with_custom_op(model)[0] if custom_op else model, (x,), file, ['x'])
        session = open_session(file, providers, op.library() if custom_op else None)
    return _Bound(session, x, outputs)


class _Bound:
    """A session that reads and writes tensors in place: no run copies anything to or from the device."""

    def __init__(self, session: Any, x: Tensor, outputs: list[Tensor]) -> None:
        self.session, self.outputs = session, outputs
        self.binding = session.io_binding()
        self._bind(self.binding.bind_input, 'x', x)
        for description, y in zip(session.get_outputs(), outputs, strict=True):
            self._bind(self.binding.bind_output, description.name, y)

    @staticmethod
    def _bind(bind: Callable[..., None], name: str, tensor: Tensor) -> None:
        bind(name, tensor.device.type, tensor.device.index or 0, 'float32', tuple(tensor.shape), tensor.data_ptr())

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.session.run_with_iobinding(self.binding)
        return self.outputs
