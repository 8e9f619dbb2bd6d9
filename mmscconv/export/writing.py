"""Writing of a graph in each format, and opening of the written file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mmscconv.errors import UserError
from mmscconv.export import ncnn_file
from mmscconv.export.agreement import Inputs
from mmscconv.export.graphs import Graph
from mmscconv.export.image_inputs import resized
from mmscconv.export.onnx_file import export_onnx, open_session
from mmscconv.export.openvino_file import convert_onnx, open_openvino
from mmscconv.foreign_errors import first_line
from mmscconv.ops.backend import plain_only

METADATA_FILE = 'metadata.json'
# H and W for torch.export are multiples of this number, for classifiers too: every stage's stride divides it.
STEP = 32


def example(graph: Graph, images: Tensor) -> Inputs:
    """Return the inputs to trace on: two images, large enough that no axis of any output has size 1."""
    least = least_size(graph, images) // STEP
    return resized(images[:1].expand(2, -1, -1, -1), ((least + 3) * STEP, (least + 5) * STEP))[: len(graph.inputs)]


def least_size(graph: Graph, images: Tensor) -> int:
    """Return the least height and width for torch.export, which would take an axis that may be 1 for constant 1."""
    if graph.coarsest > 1:
        return (graph.coarsest // STEP + 1) * STEP
    return min(2, max(1, min(images.shape[2:]) // STEP)) * STEP


def require_size(graph: Graph, images: Tensor, size: tuple[int, int] | None) -> None:
    """Raise UserError if a program of torch.export does not take ``size``, None for that of ``images``."""
    least = least_size(graph, images)
    height, width = size or images.shape[2:]
    taken = [max(least, -(-side // STEP) * STEP) for side in (height, width)]
    if taken != [height, width]:
        raise UserError(
            f'a program of torch.export takes heights and widths that are multiples of {STEP}, {least} or more, got '
            f'{height}x{width}: pass --size {taken[0]}x{taken[1]}, or write another format'
        )


def write_onnx(graph: Graph, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
    """Write ONNX with ``metadata`` in its properties."""
    import onnx

    with torch.no_grad():
        axes = {**graph.inputs, **graph.outputs}
        export_onnx(graph.network, example(graph, images), file, list(graph.inputs), list(graph.outputs), axes)
    model = onnx.load(file)
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = 'mmscconv'
    onnx.save(model, file)


def open_onnx(file: Path, library: Path | None = None) -> Callable[..., Sequence[Tensor]]:
    """Return a function from tensors to tensors that runs the file in ONNX Runtime, with the ops of ``library``."""
    session = open_session(file, library=library)
    names = [put.name for put in session.get_inputs()]

    def call(*inputs: Tensor) -> Sequence[Tensor]:
        return list(
            map(torch.from_numpy, session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True))))
        )

    return call


def write_openvino(graph: Graph, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
    """Write OpenVINO's *.xml and *.bin, with ``metadata`` in rt_info."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / 'model.onnx'
        write_onnx(graph, images, {}, source)
        convert_onnx(source, file, metadata)


def write_ncnn(graph: Graph, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
    """Write ncnn's *.param and *.bin, and ``metadata`` and the names of inputs and outputs as *.json beside them."""
    (traced,) = example(graph, images)
    height, width = traced.shape[2:]
    other = resized(traced[:1], (height + 2 * STEP, width + STEP))[0]
    ncnn_file.convert(graph.network, [traced[:1], other], file, list(graph.inputs), list(graph.outputs))
    content = {key: json.loads(value) for key, value in metadata.items()}
    file.with_suffix('.json').write_text(
        json.dumps({**content, 'inputs': [*graph.inputs], 'outputs': [*graph.outputs]})
    )


def open_ncnn(file: Path) -> Callable[..., Sequence[Tensor]]:
    """Return a function from tensors to tensors that runs the file, one image after the other."""
    content = json.loads(file.with_suffix('.json').read_text())
    return ncnn_file.load(file, content['inputs'], content['outputs'])


def write_program(graph: Graph, images: Tensor, metadata: Mapping[str, str], file: Path) -> None:
    """Write a program of torch.export, with ``metadata`` as its extra file ``metadata.json``.

    Raises:
        UserError: torch.export cannot export the network.
    """
    from torch.export import Dim, export, save

    least = least_size(graph, images)
    height, width = (STEP * Dim(name, min=least // STEP, max=256) for name in ('rows', 'columns'))
    try:
        with torch.no_grad(), plain_only():
            program = export(
                graph.network,
                example(graph, images),
                dynamic_shapes=({0: Dim('batch', min=1, max=1024), 2: height, 3: width},),
                strict=False,
            )
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise UserError(f'torch.export cannot export this network: {first_line(error)}') from error
    sizes = dict(size_divisor=json.dumps(STEP), least_size=json.dumps(least))
    save(program, file, extra_files={METADATA_FILE: json.dumps({**metadata, **sizes})})


def open_program(file: Path) -> Callable[..., Sequence[Tensor]]:
    """Return a function from tensors to tensors that runs the program in the file."""
    return torch.export.load(file).module()


Write = Callable[[Graph, Tensor, Mapping[str, str], Path], None]
# Format -> functions that write and open a file.
FUNCTIONS: dict[str, tuple[Write, Callable[[Path], Callable[..., Sequence[Tensor]]]]] = {
    'onnx': (write_onnx, open_onnx),
    'pt2': (write_program, open_program),
    'openvino': (write_openvino, open_openvino),
    'ncnn': (write_ncnn, open_ncnn),
}
