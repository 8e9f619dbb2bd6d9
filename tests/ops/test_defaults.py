"""No default dtype or device changes what the kernels compute: whatever is allocated names both."""

import ast
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.paths import ROOT
from mmscconv import SCConv, ops
from mmscconv.ops import compiled, packing

CL = torch.channels_last
needs_kernels = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
DEFAULTS = {
    'float64': (torch.float64, 'cpu'),
    'bfloat16': (torch.bfloat16, 'cpu'),
    'meta': (torch.float32, 'meta'),
}
ALLOCATING = {
    'arange', 'as_tensor', 'empty', 'empty_strided', 'eye', 'full', 'linspace', 'logspace', 'normal', 'ones', 'rand',
    'randint', 'randn', 'randperm', 'range', 'scalar_tensor', 'tensor', 'zeros',
}  # fmt: skip
# Parameters that follow the defaults as nn.Conv2d's do.
FOLLOWING = {('mmscconv/layers/conv_like.py', 'torch.zeros(out_channels)')}


def allocations(tree):
    """Calls of torch's functions that allocate, without dtype or device."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ALLOCATING:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == 'torch'
            if of_torch and not {'dtype', 'device'} <= {keyword.arg for keyword in node.keywords}:
                yield node


@pytest.mark.parametrize('folder', ['ops', 'layers'])
def test_allocations_name_dtype_and_device(folder):
    found = set()
    for path in sorted((ROOT / 'mmscconv' / folder).rglob('*.py')):
        name = path.relative_to(ROOT).as_posix()
        found |= {(name, ast.unparse(node)) for node in allocations(ast.parse(path.read_text()))}
    assert found <= FOLLOWING


def test_the_search_finds_them():
    code = 'torch.empty(3, dtype=d); torch.zeros(3, device=d, dtype=d); torch.rand(2); x.new_empty(3); np.empty(3)'
    assert [ast.unparse(node) for node in allocations(ast.parse(code))] == ['torch.empty(3, dtype=d)', 'torch.rand(2)']


@contextmanager
def defaults(dtype, device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def maps(*channels, size=(7, 5), leaf=True):
    made = (torch.randn(2, c, *size).contiguous(memory_format=CL) for c in channels)
    return [t.requires_grad_() if leaf else t for t in made]


def leaves(*shapes):
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def gradients(out, inputs):
    outs = out if isinstance(out, tuple) else (out,)
    return [*outs, *torch.autograd.grad([o.sum() for o in outs], inputs)]


def sru():
    (x,), affine = maps(16), leaves((16,), (16,))
    return lambda: gradients(ops.sru(x, *affine, 4, 1e-5, 0.1, False, backend='native'), [x, *affine])


def fuse(**settings):
    inputs = maps(16, 4, 16, 12)
    return lambda: gradients(ops.fuse(*inputs, backend='native', **settings), inputs)


def norm_fuse():
    inputs, affine = maps(16, 12, 4), leaves((16,), (16,), (16,), (16,))

    def run():
        out, *statistics = ops.norm_fuse(*inputs, (*affine[:2], 1e-5), (*affine[2:], 1e-3))
        return [*gradients(out, [*inputs, *affine]), *statistics]

    return run


def sru_squeeze():
    (x,), others = maps(16), leaves((16,), (16,), (4, 8, 1, 1), (3, 8, 1, 1), (4,), (3,))
    settings = (*others[:2], 4, 1e-5, 0.1, False)
    return lambda: gradients(ops.sru_squeeze(x, settings, *others[2:4], tuple(others[4:])), [x, *others])


def transform_fuse(own=False):
    (x_up, up, low), weights = maps(8, 8, 4), leaves((16, 4, 3, 3), (16, 8, 1, 1), (12, 4, 1, 1), (16,), (12,))
    window = ops.Window(2, (3, 3), (1, 1), (1, 1), (1, 1))
    inputs = [x_up, low, *weights, *([up] if own else [])]
    arguments = x_up, up if own else None, low, tuple(weights[:3]), window, tuple(weights[3:])
    return lambda: gradients(ops.transform_fuse(*arguments), inputs)


def weights_packed():
    with torch.no_grad():
        gwc, pwc1, pwc2 = leaves((16, 4, 3, 3), (16, 8, 1, 1), (12, 4, 1, 1))
    arguments = (gwc.detach(), pwc1.detach(), pwc2.detach(), 2, 4)

    def run():
        rows = packing.transform_rows(*arguments)
        return [
            ops.packed(arguments[1]), ops.packed_transform(*arguments), rows, *packing.weights_of_rows(rows, *arguments)
        ]  # fmt: skip

    return run


def deployed():
    layer = SCConv(16, 16, 3, padding=1, num_groups=4).eval()
    (x,) = maps(16, leaf=False)
    with torch.no_grad():
        wanted = layer(x)

    def run():
        if layer.recompute is not None:  # once, under the default
            layer.switch_to_deploy(torch.nn.BatchNorm2d(16, dtype=torch.float32, device='cpu').eval())
            layer.recompute = None
        with torch.no_grad():
            out = layer(x)
        torch.testing.assert_close(out * (1 + 1e-5) ** 0.5, wanted, rtol=1e-4, atol=1e-5)
        return [out]

    return run


def training():
    layer = SCConv(64, 64, 3, padding=1)
    (x,) = maps(64)
    return lambda: gradients(layer(x), [x, *layer.parameters()])


CASES = {
    'sru': sru,
    'fuse': fuse,
    'fuse, output kept': lambda: fuse(output_is_kept=True),
    'norm_fuse': norm_fuse,
    'sru_squeeze': sru_squeeze,
    'transform_fuse': transform_fuse,
    'transform_fuse, PWC1 with an input of its own': lambda: transform_fuse(own=True),
    'packing': weights_packed,
    'training': training,
    'deployed': deployed,
}


@needs_kernels
@pytest.mark.parametrize('default', DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_kernels_give_the_same_bits(case, default):
    run = case()
    if case is not deployed:
        wanted = run()
    with defaults(*default):
        found = run()
    if case is deployed:
        wanted = run()
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == expected.dtype and got.device == expected.device
        assert torch.equal(got, expected)


OPS = {
    'sru': lambda: (*maps(16, leaf=False), torch.randn(16), torch.randn(16), 4, 1e-5, 0.1, False, 'native'),
    'fuse': lambda: (*maps(16, 4, 16, 12, leaf=False), None, None, True, 'native'),
    'norm_fuse': lambda: (*maps(16, 12, 4, leaf=False), *(torch.rand(16), torch.rand(16), 1e-5) * 2),
    'sru_squeeze': lambda: (
        *maps(16, leaf=False), torch.rand(16), torch.rand(16), 4, 1e-5, 0.0, False, torch.rand(4, 8, 1, 1),
        torch.rand(3, 8, 1, 1), None, None, (1, 1),
    ),
    'transform_fuse': lambda: (
        *maps(8, 8, 4, leaf=False), torch.rand(16, 4, 3, 3), torch.rand(16, 8, 1, 1), torch.rand(12, 4, 1, 1), None,
        None, 2, (3, 3, 1, 1, 1, 1, 1, 1),
    ),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize('default', [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', OPS)
def test_fakes_have_the_dtypes_of_what_the_ops_return(name, default):
    arguments = OPS[name]()
    leaves = [t.clone().requires_grad_() if isinstance(t, torch.Tensor) else t for t in arguments]
    out = getattr(torch.ops.mmscconv, name)(*leaves)[0]
    with Backward() as backward:
        out.sum().backward()
    with defaults(default, 'cpu'):
        for op, given in ((getattr(torch.ops.mmscconv, name).default, arguments), *backward.calls):
            torch.library.opcheck(op, given, test_utils='test_faketensor')
    assert len(backward.calls) == 1


class Backward(TorchDispatchMode):
    """The calls of the ops' own backward ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith('mmscconv.'):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))
