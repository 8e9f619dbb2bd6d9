"""The kernels compile for an H100 without one: the interpreter takes much that the compiler does not."""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('triton', reason='Triton is not installed')

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mmscconv.ops import gpu

# In a process of its own: for all that comes after, the driver is one of an H100. No other test names these variables,
# so the process collects this file alone.
pytestmark = [pytest.mark.apart(TRITON_INTERPRET='0'), pytest.mark.slow]


def compiled_for_an_h100(monkeypatch):
    """Return a list that gets the name and PTX of each kernel, which is compiled instead of being launched."""
    found = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.__name__, kernel.asm['ptx']))

    monkeypatch.setattr(JITFunction, 'run', compile_only)
    h100 = SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(h100)
    return found


@pytest.mark.parametrize(
    ('shape', 'dtype', 'layout', 'width'),
    [
        ((2, 64, 8, 8), torch.bfloat16, torch.channels_last, 4),
        ((1, 12, 3, 5), torch.float32, torch.contiguous_format, 1),
    ],
    ids=['aligned', 'odd'],
)
def test_compiles(shape, dtype, layout, width, monkeypatch, tmp_path):
    def map_of(channels):
        return torch.zeros(shape[0], channels, *shape[2:], dtype=dtype).contiguous(memory_format=layout)

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    compiled = compiled_for_an_h100(monkeypatch)
    c = shape[1]
    x, low, made, scale = map_of(c), map_of(c // 4), map_of(c - c // 4), torch.zeros(c)
    for hard in (False, True):
        out, mean, rstd = gpu.sru_forward(x, scale, scale, 4, 1e-5, 0.0, hard)
        gpu.sru_backward(out, x, scale, scale, mean, rstd, 0.0, hard)
    _, beta1 = gpu.fuse_forward(x, low, x, made, scale, scale)
    gpu.fuse_forward(x, x, None, None, None, None)
    for is_output in (False, True):
        gpu.fuse_backward(x, x, is_output, low, made, beta1)
    assert {name.rsplit('.')[-1] for name, _ in compiled} >= {'moments', 'gate', 'grad_sums', '_sums', '_lerp'}
    for name, ptx in compiled:
        assert 'atom' not in ptx
        if not name.startswith(('finish', '_finish')):
            widths = [int(w or 1) for w in re.findall(r'(?:ld|st)\.global(?:\.v(\d))?\.b\d+', ptx)]
            assert max(widths) >= width, name
