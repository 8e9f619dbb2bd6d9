"""Products of bf16 maps in AMX's tiles, or in the plain C that stands for them elsewhere, beside float64."""

import pytest
import torch
import torch.nn.functional as F

from mmscconv import SCConv, equations, ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.ops import compiled, native

pytestmark = pytest.mark.usefixtures('instructions')
CL = torch.channels_last
STEP = 2**-8  # half a step of bf16, in parts of a value


@pytest.fixture
def tiles(monkeypatch):
    """Turn the tiles on or off, whatever the machine has."""

    def turn(on):
        monkeypatch.setattr(native, 'multiplies_in_tiles', lambda: on)

    turn(True)
    return turn


def bf16(*shape):
    return torch.randn(*shape).bfloat16().contiguous(memory_format=CL)


def assert_rounded(got, want, of_sum=0.0):
    """``got`` is ``want`` rounded to bf16, up to ``of_sum``, an error of the sum before it is rounded."""
    assert got.dtype is torch.bfloat16
    error = (got.double() - want).abs()
    assert (error <= STEP * want.abs() * 1.01 + of_sum).all(), error.max()


SQUEEZES = {
    'one step': (2, 64, 4, 9, 7, 32, 16, 16),
    'rests': (3, 84, 6, 9, 11, 34, 19, 5),
    'two panels': (1, 96, 8, 5, 6, 48, 70, 33),
    'many positions': (1, 64, 4, 41, 37, 32, 4, 4),
    'one position': (2, 64, 4, 1, 1, 32, 4, 4),
    'less than a step, as floats': (2, 62, 2, 9, 7, 31, 16, 16),
    'narrow, as floats': (1, 16, 4, 41, 37, 8, 4, 4),
}


@pytest.mark.parametrize('pool', [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize('name', SQUEEZES)
def test_squeezes(name, pool, tiles):
    n, c, groups, h, w, cut, u, l = SQUEEZES[name]  # noqa: E741
    x, scale, shift = bf16(n, c, h, w), torch.rand(c) + 0.1, torch.randn(c)
    up, low = bf16(u, cut, 1, 1).float(), bf16(l, c - cut, 1, 1).float()
    biases = torch.randn(u), torch.randn(l)
    # The gate jumps at its threshold: one that no logit is near.
    logits = F.group_norm(x.double(), groups, scale.double(), shift.double(), 1e-5)
    near = logits[logits.abs() < 1].sort().values
    widest = int(near.diff().argmax()) if len(near) > 1 else None
    threshold = 0.0 if widest is None else near[widest : widest + 2].mean().item()
    arguments = (x, scale, shift, groups, 1e-5, threshold, False, up, low, *biases, pool)
    got = native.sru_squeeze(*arguments)[:2]
    reconstructed = equations.reconstruct(x.double(), *equations.gate(logits, threshold))
    top, bottom = reconstructed.split((cut, c - cut), dim=1)
    bottom = F.avg_pool2d(bottom, pool, pool, ceil_mode=True, count_include_pad=False)
    for out, half, weight, bias in ((got[0], top, up, biases[0]), (got[1], bottom, low, biases[1])):
        half = half.bfloat16().double()
        want = F.conv2d(half, weight.double(), bias.double())
        # A value of X^w near the middle of two bf16 numbers may go to either.
        slack = 4 * STEP * (half.abs().amax() * weight.abs().amax()).item() + 1e-5
        assert_rounded(out, want, slack)
    # Only tiles round X^w.
    tiles(False)
    floats = native.sru_squeeze(*arguments)[:2]
    assert all(map(torch.equal, got, floats)) == name.endswith('as floats')


WINDOWS = {
    '3x3': dict(kernel_size=3, padding=1),
    '3x3 of 4 groups': dict(kernel_size=3, padding=1, groups=4),
    'stride': dict(kernel_size=3, padding=1, stride=2),
    'strides apart': dict(kernel_size=(3, 5), padding=(1, 2), stride=(1, 3)),
    'no overlap': dict(kernel_size=1, stride=2),
    '1x1': dict(kernel_size=1),
    'column': dict(kernel_size=(5, 1), padding=(2, 0)),
    'even': dict(kernel_size=2, padding=0),
    'lines apart': dict(kernel_size=3, padding=(2, 1), dilation=(2, 1)),
    'too wide': dict(kernel_size=(3, 9), padding=(1, 4)),
    'columns apart': dict(kernel_size=3, padding=(1, 2), dilation=(1, 2)),  # the float products
}
SIZES = {
    'small': (3, 16, 8, 7, 5),
    'steps': (2, 64, 32, 11, 33),
    'rests': (2, 72, 24, 9, 34),
    'many': (1, 32, 8, 61, 3),
}


def transform(window, size, made_of_all=False):
    """Return the arguments of native.transform_fuse, on values that bf16 holds, and its result in float64."""
    n, c, l, h, w = SIZES[size]  # noqa: E741
    settings = {'groups': 2, 'stride': 1, 'padding': 0, 'dilation': 1, **WINDOWS[window]}
    groups = settings.pop('groups')
    pairs = {key: (value, value) if isinstance(value, int) else value for key, value in settings.items()}
    pool = AlignedAvgPool2d(**pairs)
    u = c // 2 // groups * groups
    x = bf16(n, u, h, w)
    pooled = pool(x.float())
    low = bf16(n, l, *pooled.shape[2:])
    gwc, pwc1 = bf16(c, u // groups, *pairs['kernel_size']).float(), bf16(c, u, 1, 1).float()
    pwc2 = bf16(c if made_of_all else c - l, l, 1, 1).float()
    bias1, bias2 = torch.randn(c), torch.randn(len(pwc2))
    in_kernel = ops.Window(groups, **pairs)
    centre = pool.is_identity and in_kernel.centre is not None
    up = None if centre else bf16(n, u, *pooled.shape[2:])
    del settings['kernel_size']
    y1 = F.conv2d(x.double(), gwc.double(), bias1.double(), **settings, groups=groups)
    y1 = y1 + F.conv2d((x if up is None else up).double(), pwc1.double())
    y2 = F.conv2d(low.double(), pwc2.double(), bias2.double())
    y2 = y2 if made_of_all else torch.cat((y2, low.double()), dim=1)
    want = equations.fuse(y1, y2)
    return (x, up, low, gwc, pwc1, pwc2, bias1, bias2, groups, in_kernel.numbers), want


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('window', WINDOWS)
def test_transform(window, size, tiles):
    arguments, want = transform(window, size, made_of_all=size == 'rests')
    got, beta1 = native.transform_fuse(*arguments)
    assert_rounded(got, want, 2e-5 * want.abs().amax().item())
    tiles(False)
    assert torch.equal(native.transform_fuse(*arguments)[1], beta1)


@pytest.mark.parametrize('special', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('place', ['x', 'low', 'x, where no tap looks'])
def test_what_is_no_number_takes_the_float_products(place, special, tiles):
    arguments, _ = transform('no overlap' if place.endswith('looks') else '3x3', 'small')
    t = arguments[2 if place == 'low' else 0]
    t[1, 3, 3, 1] = special
    got = native.transform_fuse(*arguments)
    tiles(False)
    for one, other in zip(got, native.transform_fuse(*arguments), strict=True):
        assert torch.equal(one.nan_to_num(7, 8, 9), other.nan_to_num(7, 8, 9))


@pytest.mark.parametrize('what', ['x', 'scale', 'shift', 'huge'])
def test_squeezes_of_what_is_no_number(what, tiles):
    x, scale, shift = bf16(2, 36, 5, 4), torch.rand(36), torch.randn(36)
    up, low = torch.randn(7, 10, 1, 1), torch.randn(5, 26, 1, 1)
    if what == 'huge':
        x *= 1e37
    else:
        {'x': x[0, 20], 'scale': scale[20:21], 'shift': shift[20:21]}[what].view(-1)[0] = float('nan')
    arguments = (x, scale, shift, 4, 1e-5, 0.0, False, up, low, None, None, (1, 1))
    got = native.sru_squeeze(*arguments)
    tiles(False)
    for one, other in zip(got, native.sru_squeeze(*arguments), strict=True):
        assert torch.equal(one.nan_to_num(7, 8, 9), other.nan_to_num(7, 8, 9))


@pytest.mark.parametrize('settings', [{}, {'stride': 2}, {'inner_norm': True}], ids=str)
def test_threads_do_not_change_the_bits(settings, tiles):
    layer = SCConv(64, 64, 3, padding=1, **settings).eval().bfloat16()
    x = bf16(3, 64, 17, 15)
    before = torch.get_num_threads()
    try:
        for deployed in (False, True):
            if deployed:
                layer.switch_to_deploy()
            found = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                with torch.no_grad():
                    found.append(layer(x))
            assert torch.equal(*found)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('granted', [1, 0])
@pytest.mark.parametrize(('value', 'wanted'), [(None, True), ('', True), ('1', True), ('0', False)])
def test_the_variable_turns_them_off(value, wanted, granted, monkeypatch):
    """Whatever the machine has: the kernels' answer is given here."""
    monkeypatch.setattr(compiled, 'call', lambda name, answer: answer.__setitem__(0, granted))
    if value is None:
        monkeypatch.delenv('MMSCCONV_AMX', raising=False)
    else:
        monkeypatch.setenv('MMSCCONV_AMX', value)
    assert compiled.multiplies_in_tiles.__wrapped__() is (bool(granted) and wanted)
