"""The kernel from GWC to fuse and its backward, against the equations in float64."""

import pytest
import torch
import torch.nn.functional as F

from mmscconv import ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d

CL = torch.channels_last
WINDOWS = {
    'same': (2, (3, 3), (1, 1), (1, 1), (1, 1)),
    'strided': (2, (3, 3), (2, 2), (1, 1), (1, 1)),
    'dilated, four groups': (4, (3, 3), (1, 1), (2, 2), (2, 2)),
    'one line, stride 3': (1, (1, 5), (3, 1), (0, 2), (1, 1)),
    'large': (1, (7, 7), (2, 2), (3, 3), (1, 1)),
    'of one position': (2, (1, 1), (1, 1), (0, 0), (1, 1)),
}


def tensors(channels, groups, window, size, n, biased=True):
    """x_up, up or None, low, the three weights and two biases or None, leaves that require gradients."""
    u, low = 8 * groups if channels % 16 else channels // 4, channels // 4
    pool = AlignedAvgPool2d(*window)
    x_up = torch.randn(n, u, *size)
    out = pool(x_up).shape[2:]
    inputs = [x_up, None if pool.is_identity else torch.randn(n, u, *out), torch.randn(n, low, *out)]
    inputs = [None if t is None else t.contiguous(memory_format=CL) for t in inputs]
    weights = [
        torch.randn(channels, u // groups, *window[0]),
        torch.randn(channels, u, 1, 1),
        torch.randn(channels - low, low, 1, 1),
    ]
    biases = [torch.randn(channels), torch.randn(channels - low)] if biased else [None, None]
    return [None if t is None else t.mul_(0.5).requires_grad_() for t in (*inputs, *weights, *biases)]


def by_equations(x_up, up, low, gwc, pwc1, pwc2, bias1, bias2, window):
    groups, _, stride, padding, dilation = window
    y1 = F.conv2d(x_up, gwc, bias1, stride, padding, dilation, groups) + F.conv2d(x_up if up is None else up, pwc1)
    y2 = torch.cat((F.conv2d(low, pwc2, bias2), low), dim=1)
    beta = torch.stack((y1.mean((2, 3)), y2.mean((2, 3)))).softmax(dim=0)[..., None, None]
    return beta[0] * y1 + beta[1] * y2


def by_kernel(leaves, window, upstream=None):
    """Output and all gradients; what is not written is NaN."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        out = ops.transform_fuse(*leaves[:3], tuple(leaves[3:6]), ops.Window(*window), tuple(leaves[6:]))
        upstream = torch.ones_like(out) if upstream is None else upstream
        return out, *torch.autograd.grad(out, [t for t in leaves if t is not None], upstream)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('size', [(1, 1), (7, 5), (19, 61)], ids=str)
@pytest.mark.parametrize(('channels', 'n'), [(8, 3), (24, 1), (64, 5), (144, 2)])
@pytest.mark.parametrize('window', WINDOWS.values(), ids=WINDOWS)
def test_output_and_all_gradients(window, channels, n, size, instructions):
    groups, kernel_size, _, padding, dilation = window
    if any(s + 2 * p <= d * (k - 1) for s, k, p, d in zip(size, kernel_size, padding, dilation, strict=True)):
        size = (7, 9)
    leaves = tensors(channels, groups, window[1:], size, n, biased=n > 1)
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in leaves]
    want = by_equations(*doubles, window)
    upstream = torch.randn(want.shape)
    wanted = want, *torch.autograd.grad(want, [t for t in doubles if t is not None], upstream.double())
    for got, expected in zip(by_kernel(leaves, window, upstream), wanted, strict=True):
        assert got.shape == expected.shape
        scale = expected.abs().max().item()
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5 * max(scale, 1))


@pytest.mark.parametrize('window', ['same', 'strided'])
@pytest.mark.parametrize('n', [1, 3])
def test_same_bits_with_any_number_of_threads(n, window):
    window = WINDOWS[window]
    leaves = tensors(64, window[0], window[1:], (33, 21), n)
    upstream = torch.randn(n, 64, 33, 21) if window[2] == (1, 1) else torch.randn(n, 64, 17, 11)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(by_kernel(leaves, window, upstream))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, others, found[0]))


def test_a_position_of_its_own_is_needed_where_no_tap_is():
    window = (2, (2, 2), (2, 2), (0, 0), (1, 1))
    x_up, _, low, *weights = tensors(16, 2, window[1:], (4, 4), 1, biased=False)[:6]
    with pytest.raises(ValueError, match=r'no tap of the window .* PWC1 needs an input'):
        ops.transform_fuse(x_up, None, low, tuple(weights), ops.Window(*window))
