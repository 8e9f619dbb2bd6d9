"""OpenVINO: models as its own files (*.xml with the graph, *.bin with the weights) and programs for the CPU.

A program of OpenVINO computes in bf16 without being asked where the processor has bf16. So every caller names the
precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmscconv.errors import UserError
from mmscconv.foreign_errors import flat_message

# Names in dtypes of the benchmark -> of OpenVINO.
PRECISIONS = {'fp32': 'f32', 'bf16': 'bf16'}
# Place of the metadata among the model's rt_info.
SECTION = 'mmscconv'


def convert_onnx(source: Path, file: Path, metadata: Mapping[str, str]) -> None:
    """Write the ONNX file ``source`` as ``file``, *.xml, and its *.bin, weights in fp32, with ``metadata`` in rt_info.

    Raises:
        UserError: OpenVINO cannot read the graph.
    """
    import openvino

    model = _read(_core(), source)
    for key, value in metadata.items():
        model.set_rt_info(value, [SECTION, key])
    openvino.save_model(model, file, compress_to_fp16=False)


def metadata_of(file: Path) -> dict[str, str]:
    """Return what :func:`convert_onnx` was given as ``metadata``."""
    info = _core().read_model(file).get_rt_info([SECTION])
    return {key: value.astype(str) for key, value in info.astype(dict).items()}


def compile_file(file: Path, precision: str | None) -> Any:
    """Return the compiled model of an ONNX file or a *.xml, for the CPU, with as many threads as PyTorch has.

    Args:
        file: To read.
        precision: ``'fp32'`` or ``'bf16'``; None for OpenVINO's choice.

    Raises:
        UserError: OpenVINO cannot take the model, or cannot compute in ``precision`` on this processor.
    """
    core = _core()
    settings: dict[str, Any] = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    if precision is not None:
        settings['INFERENCE_PRECISION_HINT'] = PRECISIONS[precision]
    if precision == 'bf16' and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise UserError('OpenVINO has no bf16 on this processor')
    model = _read(core, file)
    try:
        return core.compile_model(model, 'CPU', settings)
    except RuntimeError as error:
        raise UserError(f'OpenVINO cannot compile this network: {flat_message(error)[:300]}') from error


def precision_of(program: Any) -> str:
    """Return the precision of a compiled model, by its name in ``PRECISIONS``; OpenVINO's name for any other."""
    name = program.get_property('INFERENCE_PRECISION_HINT').get_type_name()
    return {theirs: ours for ours, theirs in PRECISIONS.items()}.get(name, name)


def runs(program: Any, shared: bool = False) -> Callable[..., Sequence[Tensor]]:
    """Return a function from tensors to tensors that runs a compiled model.

    Args:
        program: Compiled model from :func:`compile_file`.
        shared: Let the function return its own buffers, which the next call overwrites.
    """
    request = program.create_infer_request()

    def call(*inputs: Tensor) -> Sequence[Tensor]:
        results = request.infer([t.numpy() for t in inputs], share_inputs=True, share_outputs=shared)
        return [torch.from_numpy(y) for y in results.values()]

    return call


def open_openvino(file: Path, precision: str | None = 'fp32') -> Callable[..., Sequence[Tensor]]:
    """Return a function from tensors to tensors that runs the file."""
    return runs(compile_file(file, precision))


@functools.cache
def _core() -> Any:
    """Return the process's one ``openvino.Core``.

    The first compilation of each Core gives the thread another stack for signal handlers, and its end gives back the
    one that was there before (OpenVINO 2026.4). Where two end in the order of their beginning, the stack that stays is
    unmapped, and the next signal with a handler in Python, as at the end of a data loader's worker, ends the process.
    """
    import openvino

    return openvino.Core()


def _read(core: Any, file: Path) -> Any:
    try:
        return core.read_model(file)
    except RuntimeError as error:
        raise UserError(f'OpenVINO cannot read this network: {flat_message(error)[:300]}') from error
