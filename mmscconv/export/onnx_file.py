"""ONNX files: the exporter and ONNX Runtime sessions, shared by tools/export.py and the benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line

# ONNX Runtime 1.12 and newer read it.
OPSET = 17

# Name, alone or with its settings.
Provider = str | tuple[str, dict[str, Any]]


def export_onnx(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    file: str | Path,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Trace ``network``, in eval mode, on ``inputs`` and write it to ``file``.

    ``dynamo=True`` is not used: it takes many times longer, needs onnxscript and is young in
    torch 2.4 (docs/export.md).

    Raises:
        UserError: torch.onnx cannot export the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.onnx.export(
                network,
                inputs,
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=output_names and list(output_names),
                dynamic_axes=dynamic_axes,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise UserError(f'torch.onnx cannot export this network: {first_line(error)}') from error


def open_session(
    file: str | Path, providers: Sequence[Provider] = ('CPUExecutionProvider',), library: Path | None = None
) -> Any:
    """Return the session of a file that may use the ops of ``library``, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Sessions run in turns: threads that spin on after a run would slow down the next session.
    options.add_session_config_entry('session.force_spinning_stop', '1')
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(str(file), options, providers=list(providers))
