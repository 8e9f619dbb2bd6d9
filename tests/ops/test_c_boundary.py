"""The C functions as Python calls them: their declarations are read from one header, and bad arguments raise."""

import ctypes
import functools
import os
import shutil
import subprocess

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.subclasses import Subclass
from mmscconv.ops import compiled
from mmscconv.ops.backend import triton_unavailable
from mmscconv.ops.compiled import call
from mmscconv.ops.fitting import check
from mmscconv.ops.prototypes import prototypes

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
SOURCES = sorted(compiled.SOURCES.glob('*.c'))
# clang's -fopenmp is a package of its own.
COMPILERS = [
    pytest.param(
        compiler, openmp, id=f'{compiler}{openmp}',
        marks=pytest.mark.skipif(shutil.which(compiler) is None, reason=f'{compiler} is not installed'),
    )
    for compiler, openmp in (('gcc', '-fopenmp'), ('gcc', '-fopenmp-simd'), ('clang', '-fopenmp-simd'))
]  # fmt: skip


def test_the_header_says_what_ctypes_is_told():
    header = """
    /* int ignored(float x); */
    #define NULLABLE /* int ignored(float x); */
    int f(const float *x, double *NULLABLE sums, int64_t n, const int64_t *numbers, /* of a map */ double eps, int last,
          float t);
    int g(int n);
    """
    found = prototypes(header)
    assert list(found) == ['f', 'g']
    kinds = {p.name: (p.ctype, p.dtype, p.nullable) for p in found['f']}
    assert kinds == {
        'x': (ctypes.c_void_p, torch.float32, False),
        'sums': (ctypes.c_void_p, torch.float64, True),
        'n': (ctypes.c_int64, None, False),
        'numbers': (ctypes.c_void_p, torch.int64, False),
        'eps': (ctypes.c_double, None, False),
        'last': (ctypes.c_int, None, False),
        't': (ctypes.c_float, None, False),
    }


@pytest.mark.parametrize(
    'header',
    ['int f(const char *x);', 'int f(float);', 'void f(int n);', 'int f(int NULLABLE n);', 'int f(float **x);'],
)
def test_what_the_header_may_not_say(header):
    with pytest.raises(ValueError, match='that Python can read'):
        prototypes(header)


@pytest.mark.parametrize(('compiler', 'openmp'), COMPILERS)
@pytest.mark.parametrize('source', SOURCES, ids=lambda path: path.name)
def test_every_definition_is_compared_with_its_declaration(source, compiler, openmp, tmp_path):
    flags = ['-std=gnu11', openmp, '-fsyntax-only', '-Wmissing-prototypes', '-Wall', '-Werror', '-Wno-psabi']
    assert subprocess.run([compiler, *flags, source], capture_output=True, text=True).stderr == ''
    # A definition that says otherwise does not compile.
    changed = tmp_path / source.name
    text = source.read_text()
    changed.write_text(text.replace('\nint ', '\ndouble ', 1))
    command = [compiler, *flags, f'-I{source.parent}', changed]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'LC_ALL': 'C'})
    assert 'conflicting types' in done.stderr


def test_the_library_has_every_function():
    library = compiled._library()
    for name, parameters in compiled._prototypes().items():
        assert getattr(library, name).argtypes == [p.ctype for p in parameters]


def arguments(**others):
    """Those of batch_norm_forward, some of them replaced."""
    given = dict(x=torch.tensor([[1.0, 2, 3], [3, 2, 7]]), weight=torch.ones(3), bias=torch.ones(3), rows=2, channels=3)
    mean, variance = torch.empty(2, 3, dtype=torch.float64)
    given |= dict(eps=0.1, bf16=False, threads=1, out=torch.empty(2, 3), mean=mean, variance=variance)
    return {**given, **others}.values()


def test_a_call_writes():
    given = arguments()
    call('batch_norm_forward', *given)
    assert list(given)[-2].tolist() == [2, 2, 5] and list(given)[-1].tolist() == [1, 0, 4]
    call('batch_norm_forward', *arguments(weight=torch.nn.Parameter(torch.ones(3))))


def fake():
    with FakeTensorMode():
        return torch.ones(2, 3)


BAD = {
    'dtype': (dict(x=torch.ones(2, 3, dtype=torch.bfloat16)), 'x .* torch.float32 .* got a Tensor of torch.bfloat16'),
    'sums': (dict(mean=torch.empty(3)), 'mean must be a CPU tensor of torch.float64 .* torch.float32 on cpu'),
    'device': (dict(weight=torch.ones(3, device='meta')), 'weight must be a CPU tensor .* on meta'),
    'none': (dict(bias=None), 'bias must be a CPU tensor .* of its own, got None'),
    'number': (dict(bias=3), 'bias must be .* got 3'),
    'fake': (dict(x=fake()), 'x must be .* got a FakeTensor'),
    'subclass': (dict(x=torch.ones(2, 3).as_subclass(Subclass)), 'x must be .* got a Subclass'),
    'negated': (dict(x=torch.ones(2, 3, dtype=torch.complex64).conj().imag), 'with its negative bit set'),
    'array': (dict(bias=(ctypes.c_int64 * 2)(1, 2)), 'bias must be a CPU tensor'),
}


@pytest.mark.parametrize(('others', 'words'), BAD.values(), ids=BAD)
def test_what_is_not_what_the_header_says_raises(others, words):
    with pytest.raises(TypeError, match=f'^batch_norm_forward: .*{words}'):
        call('batch_norm_forward', *arguments(**others))


def test_an_optional_tensor_of_another_dtype_raises():
    x = torch.ones(1, 2, 3)
    others = (
        x,
        None,
        None,
        x,
        torch.ones(2, dtype=torch.float64),
        None,
        1,
        2,
        3,
        False,
        2,
        6,
        3,
        1,
        x,
        torch.ones(1, 2),
    )
    with pytest.raises(TypeError, match=r'^fuse_forward: scale must be .* or None, got a Tensor of torch.float64'):
        call('fuse_forward', *others)


@pytest.mark.parametrize('transform', [torch.vmap, torch.func.grad], ids=lambda f: f.__name__)
def test_wrappers_of_torch_func_raise(transform):
    def function(x):
        call('batch_norm_forward', *arguments(x=x))
        return x.sum()

    with pytest.raises(TypeError, match=r'x must be .* got a wrapper of torch.func of torch.float32'):
        transform(function)(torch.ones(2, 3))


def test_number_of_arguments():
    with pytest.raises(TypeError, match='batch_norm_forward takes 11 arguments, got 10'):
        call('batch_norm_forward', *list(arguments())[1:])
    with pytest.raises(ctypes.ArgumentError):
        call('batch_norm_forward', *arguments(rows='2'))


def scconv(x, up):
    c, low, transform = torch.rand(x.shape[1]), torch.zeros(1, 2, 32), torch.zeros(2, 3 + 2 + 8, 32)
    settings, channels = (2, 0.1, 0.1, False), (6, 2, 3, 8, 5)
    window = 2, (3, 3, 1, 1, 1, 1, 1, 1)
    weights = [up, low, None, None], [transform, None, None, None, None]
    return torch.ops.mmscconv.scconv(x, c, c, *settings, *weights, channels, *window, 4, False)


def test_a_deployed_layer_whose_shapes_fit():
    x = torch.randn(2, 8, 4, 3).contiguous(memory_format=torch.channels_last)
    assert scconv(x, torch.zeros(1, 6, 32)).shape == (2, 8, 4, 3)


def misfits():
    """Calls of the ops with one tensor that does not fit the others."""
    x, c, kernels = (
        torch.randn(2, 8, 4, 3).contiguous(memory_format=torch.channels_last),
        torch.rand(8),
        torch.ops.mmscconv,
    )
    low, made, up = x[:, :2], x[:, :6], torch.randn(3, 4, 1, 1)
    weights = torch.randn(8, 4, 3, 3), torch.randn(8, 8, 1, 1), torch.randn(6, 2, 1, 1)
    window = 2, (3, 3, 1, 1, 1, 1, 1, 1)
    statistics, beta1 = torch.rand(2, 4), torch.rand(2, 8)
    return {
        **{
            f'{name}, {backend}': functools.partial(call, backend)
            for backend in ('native', 'triton')
            for name, call in {
                'sru: affine': lambda backend: kernels.sru(x, c, c[:4], 4, 0.1, 0.1, False, backend),
                'sru: groups': lambda backend: kernels.sru(x, c, c, 3, 0.1, 0.1, False, backend),
                'sru: gradient': lambda backend: kernels.sru_backward(
                    low, x, c, c, statistics, statistics, 0.1, False, backend
                ),
                'sru: statistics': lambda backend: kernels.sru_backward(
                    x, x, c, c, statistics, statistics[:1], 0.1, False, backend
                ),
                'fuse: low': lambda backend: kernels.fuse(x, x, None, made, None, None, False, backend),
                'fuse: low alone': lambda backend: kernels.fuse(x, low, None, None, None, None, False, backend),
                'fuse: second': lambda backend: kernels.fuse(x, low, low, made, None, None, False, backend),
                'fuse: one position': lambda backend: kernels.fuse(
                    x, low, x[:, :, :1, :1], made, None, None, False, backend
                ),
                'fuse: gradient': lambda backend: kernels.fuse_backward(low, x, True, low, made, beta1, backend),
                'fuse: means': lambda backend: kernels.fuse_backward(x, x, True, low, made, beta1[:1], backend),
            }.items()
            if backend == 'native' or triton_unavailable() is None
        },
        'sru_squeeze: gradient': lambda: kernels.sru_squeeze_backward(
            x, x, x, c, c, statistics, statistics, up, up, 0.1, False
        ),
        'transform_fuse: window': lambda: kernels.transform_fuse(
            x, None, low, *weights, None, None, 2, (5, 5, 1, 1, 2, 2, 1, 1)
        ),
        'transform_fuse: gradient': lambda: kernels.transform_fuse_backward(
            low, x, None, low, *weights, None, None, beta1, *window
        ),
        'sru_squeeze: weights': lambda: kernels.sru_squeeze(
            x, c, c, 4, 0.1, 0.1, False, up, up[:, :2], None, None, (1, 1)
        ),
        'sru_squeeze: bias': lambda: kernels.sru_squeeze(x, c, c, 4, 0.1, 0.1, False, up, up, c, None, (1, 1)),
        'transform_fuse: low': lambda: kernels.transform_fuse(x, None, x, *weights, None, None, *window),
        'transform_fuse: bias': lambda: kernels.transform_fuse(x, None, low, *weights, c[:2], None, *window),
        'transform_fuse: batch': lambda: kernels.transform_fuse(x[:1], None, low, *weights, None, None, *window),
        'scconv: up': lambda: scconv(x, torch.zeros(1, 4, 32)),
        'scconv: channels': lambda: scconv(x[:, :6], torch.zeros(1, 2, 32)),
        'norm_fuse: low': lambda: kernels.norm_fuse(x, made, x, c, c, 0.1, c, c, 0.1),
        'norm_fuse: weight': lambda: kernels.norm_fuse(x, made, low, c[:3], c, 0.1, c, c, 0.1),
    }


def test_tensors_on_several_devices_raise():
    with pytest.raises(ValueError, match=r'^sru: tensors on several devices: x cpu, scale meta$'):
        check('sru', True, x=torch.empty(1), scale=torch.empty(1, device='meta'), shift=None)


@pytest.mark.parametrize('case', misfits())
def test_shapes_that_do_not_fit_raise(case):
    with pytest.raises(ValueError, match=f'^{case.partition(":")[0]}: shapes do not match: '):
        misfits()[case]()
