"""The kernels of fuse and their backward, native and Triton's, against the equations in float64."""

import pytest
import torch

from helpers.kernels import LAYOUTS, device_of, doubled, make, tolerance
from mmscconv.identities import fuse as fuse_plain
from mmscconv.ops import fuse

pytestmark = pytest.mark.usefixtures('poisoned')

# (N, C, H, W) and the channels of X_low.
CASES = [
    ((5, 6, 5, 7), 2),
    ((1, 2, 1, 1), 1),
    ((3, 7, 1, 1), 3),
    ((1, 13, 11, 13), 13),  # nothing is made
    ((1, 5, 23, 29), 1),  # several blocks of positions
    ((1, 300, 2, 3), 75),  # several blocks of channels
    ((1, 32, 5, 8), 16),  # aligned
    ((1, 4, 5, 1), 2),
    ((1, 4, 1, 5), 2),
]


def inputs(backend, shape, low, parts=1, layouts=('nchw',) * 4, dtype=torch.float32, **kwargs):
    """Arguments first, low, second and made of fuse."""
    n, c, h, w = shape
    channels = (c, low, c if parts == 2 else 0, c - low)
    return [
        make(backend, (n, k, h, w), layout, dtype, **kwargs).requires_grad_() if k else None
        for k, layout in zip(channels, layouts, strict=True)
    ]


def check(backend, arguments, output_is_kept=False, grad_layout='nchw', scale=1.0):
    first = arguments[0]
    out = fuse(*arguments, output_is_kept=output_is_kept, backend=backend)
    leaves = doubled(*arguments)
    want = fuse_plain(*leaves)
    assert out.dtype == first.dtype and out.shape == first.shape
    limits, eps = tolerance(first.dtype, scale), torch.finfo(first.dtype).eps
    if arguments[2] is not None and not output_is_kept:
        limits['atol'] += 2 * eps  # Y1 = first + second has been rounded, too
    torch.testing.assert_close(out.double(), want, **limits)
    upstream = make(backend, first.shape, grad_layout, first.dtype, mean=0.1)
    given, leaves = ([t for t in some if t is not None] for some in (arguments, leaves))
    # The gradient through the means is as exact as what was kept, which is rounded where it is Z or a sum.
    limits['atol'] += eps
    for got, expected in zip(
        torch.autograd.grad(out, given, upstream), torch.autograd.grad(want, leaves, upstream.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, **limits)


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
@pytest.mark.parametrize(('shape', 'low'), CASES, ids=str)
def test_sizes(backend, shape, low, layout):
    check(backend, inputs(backend, shape, low, 1, [layout] * 4), grad_layout=layout)


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
def test_full_tiles(backend, layout, full_tiles):
    check(backend, inputs(backend, (2, 67, 23, 11), 5, 1, [layout] * 4), grad_layout=layout)


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
@pytest.mark.parametrize('parts', [1, 2])
@pytest.mark.parametrize('output_is_kept', [False, True], ids=['first-kept', 'output-kept'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_kept(backend, dtype, output_is_kept, parts, layout):
    check(backend, inputs(backend, (2, 6, 5, 3), 2, parts, [layout] * 4, dtype), output_is_kept)


@pytest.mark.parametrize('layout', LAYOUTS[2:])
def test_layouts(backend, layout):
    for others in ('nchw', 'channels_last'):
        check(backend, inputs(backend, (2, 6, 5, 4), 2, 2, (others, layout, others, others)), True)
        check(backend, inputs(backend, (2, 6, 5, 4), 2, 1, (others, others, layout, layout)), grad_layout=layout)
    check(
        backend, inputs(backend, (2, 6, 5, 4), 2, 1, (layout, 'nchw', 'nchw', 'channels_last')), grad_layout='expanded'
    )


def test_columns_with_channels_last(backend):
    # The stride of an axis of size 1 means nothing.
    first, low = (torch.randn(2, 5, c, device=device_of(backend)).mT.unsqueeze(-1) for c in (6, 6))
    torch.testing.assert_close(fuse(first, low, backend=backend), fuse_plain(first, low), **tolerance(torch.float32))


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
@pytest.mark.parametrize('parts', [1, 2])
def test_scale_and_shift(backend, parts, layout):
    arguments = inputs(backend, (2, 6, 5, 7), 2, parts, [layout] * 4)
    affine = torch.randn(2, 6, device=device_of(backend))
    with torch.no_grad():
        out = fuse(*arguments, *affine, backend=backend)
        want = fuse_plain(*doubled(*arguments), *affine.double())
        torch.testing.assert_close(out.double(), want, **tolerance(torch.float32))
        over = fuse(*arguments, *affine, overwrite=True, backend=backend)
    assert torch.equal(over, out)
    assert over.data_ptr() == arguments[0].data_ptr()


@pytest.mark.parametrize('layout', ['nchw', 'channels_last'])
def test_large_mean(backend, layout):
    check(backend, inputs(backend, (1, 6, 17, 23), 2, 1, [layout] * 4, mean=1000.0), scale=1000.0)


def test_weights_at_their_ends(backend):
    first, low = make(backend, (1, 2, 3, 3)), make(backend, (1, 2, 3, 3))
    for distance in (-500.0, 500.0):
        torch.testing.assert_close(fuse(first + distance, low, backend=backend), fuse_plain(first + distance, low))


def test_same_bits_twice(backend):
    arguments = inputs(backend, (1, 13, 11, 13), 5)
    outs = [fuse(*arguments, backend=backend) for _ in range(2)]
    given = [t for t in arguments if t is not None]
    grads = [torch.autograd.grad(out, given, torch.ones_like(out).cumsum(1)) for out in outs]
    assert torch.equal(*outs)
    assert all(map(torch.equal, *grads))


def test_opcheck(backend, monkeypatch):
    monkeypatch.undo()  # the fakes are not to be filled
    arguments = inputs(backend, (2, 6, 3, 5), 2, 2, ['channels_last'] * 4)
    torch.library.opcheck(torch.ops.mmscconv.fuse.default, (*arguments, None, None, True, backend))
    detached = [t.detach() for t in arguments]
    out, beta1 = torch.ops.mmscconv.fuse(*detached, None, None, True, backend)
    _, low, _, made = detached
    for is_output in (False, True):
        torch.library.opcheck(
            torch.ops.mmscconv.fuse_backward.default, (out, detached[0], is_output, low, made, beta1, backend)
        )
