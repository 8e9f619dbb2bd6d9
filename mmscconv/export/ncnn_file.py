"""ncnn: models as its own files (*.param with the graph, *.bin with the weights), and networks for the CPU.

ncnn runs one image at a time: its files have no batch axis. pnnx, its converter, reads TorchScript.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line
from mmscconv.layers.fused import group_norm_kept

# ncnn has no comparison: a > b becomes the positive part of the sign of a - b, the same number for every a and b.
COMPARISON = 'graph(%a, %b):\n  %r = aten::gt(%a, %b)\n  return (%r)'
SIGN = """graph(%a, %b):
  %one : int = prim::Constant[value=1]()
  %difference = aten::sub(%a, %b, %one)
  %sign = aten::sign(%difference)
  %r = aten::relu(%sign)
  return (%r)"""
# Of ncnn's options: those that compute or store in less than fp32, and the GPU.
OFF = ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage', 'use_vulkan_compute')


def convert(
    network: nn.Module, images: Sequence[Tensor], file: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Write ``network``, in eval mode, as ``file``, *.param, and its *.bin.

    Args:
        network: Takes an image and returns a tuple of tensors.
        images: (1, C, H, W) each: one for a fixed size, two of different sizes for any.
        file: To write.
        inputs, outputs: Names.

    Raises:
        UserError: pnnx fails, or the network needs an operator that ncnn does not have.
    """
    import pnnx

    with TemporaryDirectory() as folder:
        source = Path(folder) / 'model.pt'
        _script(network, images[0]).save(str(source))
        keys = ('inputshape', 'inputshape2')
        sizes = [f'{key}=[{",".join(map(str, image.shape))}]' for key, image in zip(keys, images, strict=False)]
        command = [pnnx.EXEC_PATH, source.name, *sizes, 'fp16=0']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors='replace')
        param, weights = (source.with_suffix(suffix) for suffix in ('.ncnn.param', '.ncnn.bin'))
        if done.returncode or not param.exists() or not weights.exists():
            last = (done.stderr.strip() or done.stdout.strip() or f'it ended with {done.returncode}').splitlines()[-1]
            raise UserError(f'pnnx cannot convert this network for ncnn: {last}')
        names = {f'in{i}': name for i, name in enumerate(inputs)} | {f'out{i}': name for i, name in enumerate(outputs)}
        file.write_text(_named(param.read_text(), names))
        file.with_suffix('.bin').write_bytes(weights.read_bytes())


def _script(network: nn.Module, image: Tensor) -> Any:
    """Return ``network`` as frozen TorchScript without comparisons."""
    try:
        with warnings.catch_warnings(), torch.no_grad(), group_norm_kept():
            warnings.simplefilter('ignore')
            script = torch.jit.freeze(torch.jit.trace(network, image, check_trace=False).eval())
    except RuntimeError as error:
        raise UserError(f'torch.jit.trace cannot trace this network: {first_line(error)}') from error
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(COMPARISON, SIGN, script.graph)
    return script


def _named(param: str, names: dict[str, str]) -> str:
    """Return the text of a *.param with its inputs and outputs named; pnnx calls them in0, out0 and so on."""
    head, layers = param.splitlines()[:2], [line.split() for line in param.splitlines()[2:]]
    unknown = sorted({kind for kind, *_ in layers if '.' in kind or ':' in kind})  # of torch, left as they were
    if unknown:
        raise UserError(f'ncnn has no operator for {", ".join(unknown)}, which this network needs')
    for words in layers:
        blobs = int(words[2]) + int(words[3])
        words[4 : 4 + blobs] = (names.get(word, word) for word in words[4 : 4 + blobs])
    return '\n'.join([*head, *(' '.join(words) for words in layers), ''])


def load(file: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Callable[..., Sequence[Tensor]]:
    """Return a function from images (N, C, H, W) to tensors that runs the file in fp32, one image after the other.

    Raises:
        UserError: ncnn cannot load the file.
    """
    import ncnn
    import numpy as np

    network = ncnn.Net()
    for name in OFF:
        setattr(network.opt, name, False)
    network.opt.num_threads = torch.get_num_threads()
    if network.load_param(str(file)) or network.load_model(str(file.with_suffix('.bin'))):
        raise UserError(f'ncnn cannot load {file} and its .bin')

    def once(images: Sequence[Tensor]) -> list[Tensor]:
        extractor = network.create_extractor()
        for name, image in zip(inputs, images, strict=True):
            extractor.input(name, ncnn.Mat(image.numpy()))
        found = []
        for name in outputs:
            status, y = extractor.extract(name)
            if status:
                raise UserError(f'ncnn cannot compute {name} of this image')
            found.append(torch.from_numpy(np.array(y)))
        return found

    def call(*batches: Tensor) -> list[Tensor]:
        return [torch.stack(ys) for ys in zip(*map(once, zip(*batches, strict=True)), strict=True)]

    return call
