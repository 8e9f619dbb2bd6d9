"""Checksums of weights, and the deploy form's op, which never computes with a stale packing."""

import pytest
import torch
import torch.nn.functional as F

from helpers.spies import kernels_called
from mmscconv import ops
from mmscconv.ops import compiled, packing
from mmscconv.ops.gradients import FOR_INFERENCE
from mmscconv.ops.sru import sru_plain

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
CL = torch.channels_last
WINDOW = ops.Window(2, (3, 3), (1, 1), (1, 1), (1, 1))


def of(*weights):
    return packing.fingerprint(weights)


@pytest.mark.parametrize('count', [1, 2, 7, 15, 17, 4095, 4096, 4097, 12345])
def test_every_bit_and_place_counts(count):
    weight = torch.randn(count)
    found = {of(weight)}
    places = sorted({*torch.randint(count, (40,)).tolist(), 0, count - 1})
    for place in places:
        for bit in (0, 22, 31):
            changed = weight.clone()
            changed.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
            found.add(of(changed))
    assert len(found) == 1 + 3 * len(places)
    assert of(weight.clone()) == of(weight)
    assert -(2**63) <= of(weight) < 2**63


@pytest.mark.parametrize('values', ['random', 'few bits'])
def test_swapped_values(values):
    # Floats with few bits differ by large powers of two, which a sum of products modulo one loses.
    weight = torch.randn(9000) if values == 'random' else torch.arange(9000).remainder(7).exp2()
    found, pairs = {of(weight)}, 0
    for distance in (1, 2, 7, 8, 16, 64, 128, 1024, 4096, 8192):
        for place in range(0, 9000 - distance, 371):
            changed = weight.clone()
            changed[[place, place + distance]] = weight[[place + distance, place]]
            if not torch.equal(changed, weight):
                found.add(of(changed))
                pairs += 1
    assert len(found) == 1 + pairs


def test_shapes_strides_and_order():
    weight = torch.randn(4, 6, 3, 3)
    last, sliced = weight.contiguous(memory_format=CL), torch.randn(4, 9, 3, 3)[:, 2:8]
    same_bits = torch.as_strided(weight, (4, 6, 3, 3), last.stride())
    found = {of(weight), of(last), of(same_bits), of(sliced), of(weight.view(6, 4, 3, 3)), of(weight.flatten())}
    assert len(found) == 6
    assert of(sliced) == of(sliced.contiguous()) == of(sliced.clone())
    a, b = torch.randn(5), torch.randn(5)
    assert len({of(a, b), of(b, a), of(torch.cat((a, b))), of(a), of(a, b, torch.zeros(0))}) == 5
    assert of(torch.zeros(3)) != of(torch.zeros(4)) != of(-torch.zeros(4))
    assert of(weight.bfloat16()) != of(weight)
    with pytest.raises(TypeError, match=r'fingerprint: weights must be a CPU tensor of torch.float32'):
        of(torch.zeros(3, dtype=torch.float16))


def test_the_same_with_any_number_of_threads_and_instructions(instructions):
    weights = [torch.arange(n) / 1024 for n in (3, 5000, 100_000)]  # exact, whatever torch computes with
    found, threads = set(), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.add(of(*weights))
    finally:
        torch.set_num_threads(threads)
    assert found == {-6659486727810272223}


class Layer(torch.nn.Module):
    """A deploy form as the layers will use it: packed once, with the fingerprint of what was packed."""

    def __init__(self):
        super().__init__()
        shapes = dict(up=(4, 8, 1, 1), low=(4, 8, 1, 1), gwc=(16, 2, 3, 3), pwc1=(16, 4, 1, 1), pwc2=(12, 4, 1, 1))
        for name, shape in shapes.items():
            setattr(self, name, torch.nn.Parameter(torch.randn(shape)))
        self.scale, self.shift = (torch.nn.Parameter(torch.rand(16)) for _ in range(2))
        self.settings = 4, 1e-5, float('inf'), False
        weights = [w.detach() for w in self.weights]
        self.packed = ops.packed(weights[0]), ops.packed(weights[1]), ops.packed_transform(*weights[2:], 2, 4)
        self.fingerprint = ops.fingerprint(weights)

    @property
    def weights(self):
        return [self.up, self.low, self.gwc, self.pwc1, self.pwc2]

    def forward(self, x):
        up, low, transform = self.packed
        return ops.scconv(
            x, (self.scale, self.shift, *self.settings), (up, low, None, None), (transform, None, None, None, None),
            (8, 4, 4, 16, 12), WINDOW, 4, False, self.weights, self.fingerprint,
        )  # fmt: skip

    def plain(self, x):
        y = sru_plain(x, self.scale, self.shift, *self.settings)
        x_up, x_low = F.conv2d(y[:, :8], self.up), F.conv2d(y[:, 8:], self.low)
        y1 = F.conv2d(x_up, self.gwc, padding=1, groups=2) + F.conv2d(x_up, self.pwc1)
        return ops.fuse(y1, x_low, None, F.conv2d(x_low, self.pwc2), backend='plain')


def in_place(p):
    p.copy_(torch.randn_like(p))


def through_data(p):
    p.data.mul_(-1.5)


def another_storage(p):
    p.data = torch.randn(p.shape)


def another_layout(p):
    p.data = torch.randn(p.shape).contiguous(memory_format=CL)


def two_swapped(p):
    first, last = (0,) * p.dim(), (-1,) * p.dim()
    p.data[first], p.data[last] = p.data[last].clone(), p.data[first].clone()


CHANGES = (in_place, through_data, another_storage, another_layout, two_swapped)


@pytest.mark.parametrize('backend', [None, 'aot_eager', 'inductor'])
def test_changed_weights_are_seen(backend):
    layer, x = Layer(), torch.randn(2, 16, 5, 7).contiguous(memory_format=CL)
    run = layer if backend is None else torch.compile(layer, backend=backend)
    with torch.no_grad():
        before = run(x)
        torch.testing.assert_close(before, layer.plain(x), rtol=1e-4, atol=1e-4)
        for change in CHANGES:
            if change is another_layout and backend == 'inductor':
                continue  # its code raises for other strides
            for weight in layer.weights:
                change(weight)
                found = run(x)
                assert not torch.equal(found, before)
                torch.testing.assert_close(found, layer.plain(x), rtol=1e-4, atol=1e-4)
                before = found


def test_unchanged_weights_are_not_packed_again(monkeypatch):
    layer, x = Layer(), torch.randn(2, 16, 5, 7).contiguous(memory_format=CL)
    called = kernels_called(monkeypatch, packing)
    with torch.no_grad():
        layer(x)
        assert set(called) == {'fingerprint'}
        in_place(layer.gwc)
        layer(x)
        assert set(called) == {'fingerprint', 'pack', 'pack_transform'}


def test_registered_right():
    layer, x = Layer().requires_grad_(False), torch.randn(2, 16, 5, 7).contiguous(memory_format=CL)
    up, low, transform = layer.packed
    arguments = (
        x, layer.scale.data, layer.shift.data, *layer.settings, [up, low, None, None],
        [transform, None, None, None, None], [8, 4, 4, 16, 12], 2, WINDOW.numbers, 4, False,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.mmscconv.scconv.default, arguments)
    weights = [w.detach() for w in layer.weights]
    torch.library.opcheck(torch.ops.mmscconv.scconv.default, (*arguments, weights, layer.fingerprint))
    out = torch.ops.mmscconv.scconv(x.clone().requires_grad_(), *arguments[1:])
    with pytest.raises(RuntimeError, match=FOR_INFERENCE.replace('(', r'\(').replace(')', r'\)')):
        out.sum().backward()
