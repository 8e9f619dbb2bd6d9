"""Weights in the kernels' order, against the order written down as loops over output channels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmscconv import SCConv, ops
from mmscconv.ops import compiled, packing

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))


def row(c, gwc, pwc1, pwc2, groups, centre):
    """The inputs and weights of output channel ``c``."""
    of_group = len(gwc) // groups
    each = gwc.shape[1]
    low = pwc2[c, :, 0, 0] if c < len(pwc2) else torch.eye(pwc2.shape[1])[c - len(pwc2)]
    taps = [gwc[c, :, y, x] for y in range(gwc.shape[2]) for x in range(gwc.shape[3])]
    up = pwc1[c, :, 0, 0].clone()
    before = []
    if centre is not None:
        up[c // of_group * each :][:each] += taps.pop(centre)
        before, taps = taps[:centre], taps[centre:]
    return torch.cat((low, *before, up, *taps))


@pytest.fixture(params=['contiguous', 'channels last', 'sliced'])
def weights(request):
    def make(channels, low, made, groups, kernel, each=3):
        gwc = torch.randn(channels, each + 2, *kernel)[:, 1:-1]
        if request.param != 'sliced':
            gwc = gwc.contiguous(
                memory_format=torch.channels_last if request.param == 'channels last' else torch.contiguous_format
            )
        return gwc, torch.randn(channels, groups * each, 1, 1), torch.randn(made, low, 1, 1)

    return make


@pytest.mark.parametrize(
    ('channels', 'low', 'made', 'groups', 'kernel', 'centre'),
    [
        (8, 2, 6, 2, (3, 3), 4),
        (70, 5, 65, 2, (3, 3), None),
        (66, 4, 66, 1, (1, 5), 2),  # PWC2 makes all of Y2
        (96, 32, 64, 3, (2, 1), 0),
        (64, 1, 63, 4, (1, 1), 0),
    ],
    ids=str,
)
def test_transform(channels, low, made, groups, kernel, centre, weights):
    tensors = weights(channels, low, made, groups, kernel)
    wanted = torch.stack([row(c, *tensors, groups, centre) for c in range(channels)])
    rows = packing.transform_rows(*tensors, groups, centre)
    depth = wanted.shape[1]
    assert torch.equal(rows[:, :depth], wanted)
    assert rows.shape[1] % 32 == 0 and not rows[:, depth:].any()

    panels = packing.packed_transform(*tensors, groups, centre)
    each, of_group = channels // groups, len(panels) // groups
    assert panels.shape == (groups * -(-each // 32), depth, 32)
    for group, mine in enumerate(panels.split(of_group)):
        columns = torch.cat(list(mine), dim=1)  # (K, panels of the group * 32)
        assert torch.equal(columns[:, :each].T, wanted[group * each :][:each])
        assert not columns[:, each:].any()

    grads = packing.weights_of_rows(rows, *tensors, groups, centre)
    expected = list(tensors)
    if centre is not None:  # the sum of both has the gradient of each
        y, x = divmod(centre, kernel[1])
        both = rows[:, low + centre * 3 :][:, : groups * 3]
        expected[1] = both.unsqueeze(-1).unsqueeze(-1)
        expected[0] = tensors[0].clone()
        for c in range(channels):
            expected[0][c, :, y, x] = both[c, c // each * 3 :][:3]
    assert all(torch.equal(got, want) for got, want in zip(grads, expected, strict=True))


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('shape', [(4, 3), (34, 7), (128, 64)], ids=str)
def test_rows_of_any_strides(shape, groups):
    for weight in (torch.randn(shape), torch.randn(shape[::-1]).T, torch.randn(*shape, 1, 1)):
        panels = packing.packed(weight, groups)
        each = shape[0] // groups
        for group, mine in enumerate(panels.split(len(panels) // groups)):
            columns = torch.cat(list(mine), dim=1)
            assert torch.equal(columns[:, :each].T, weight.view_as(weight)[group * each :][:each].reshape(each, -1))
            assert not columns[:, each:].any()


def test_only_what_the_kernels_can_read_is_packed(monkeypatch):
    assert ops.can_pack(torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16))
    assert not ops.can_pack(torch.zeros(1), torch.zeros(1, dtype=torch.float16))
    assert not ops.can_pack(torch.zeros(1, device='meta'))
    with FakeTensorMode():
        assert not ops.can_pack(torch.zeros(1))
    monkeypatch.setattr(packing, 'unavailable', lambda: 'no compiler')
    assert not ops.can_pack(torch.zeros(1))


def test_deploy_form_packs_again_where_the_kernels_can_run_again():
    layer = SCConv(16, 16, 3, padding=1).eval()
    layer.switch_to_deploy()
    x = torch.randn(1, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted, packed = layer(x), layer.cru.packed
        layer.double()
        assert layer.cru.packed is None
        torch.testing.assert_close(layer(x.double()).float(), wanted)
        assert torch.equal(layer.float().cru.packed, packed)
        layer.to('meta')
        assert layer.cru.packed is None
