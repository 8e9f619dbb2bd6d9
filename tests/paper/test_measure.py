import math

import numpy as np
import pytest
import torch
from torch import nn

from mmscconv import SRU, SCConv
from mmscconv.paper.measures import channel_redundancy, record_gate_shares, record_outputs


def test_redundancy_equals_numpy():
    features = torch.randn(2, 5, 4, 6) + 3
    correlations = [np.abs(np.corrcoef(image.reshape(5, -1))) for image in features.double().numpy()]
    want = np.mean([c[~np.eye(5, dtype=bool)].mean() for c in correlations])
    assert channel_redundancy(features) == pytest.approx(want, rel=1e-12)


def test_redundancy_bounds():
    plane = torch.randn(1, 1, 4, 4)
    assert channel_redundancy(torch.cat((plane, -2 * plane + 1, plane + 5), dim=1)) == pytest.approx(1)
    assert channel_redundancy(torch.eye(4).view(1, 4, 2, 2)) == pytest.approx(1 / 3)


def test_redundancy_leaves_constant_channels_out():
    plane, other = torch.randn(2, 1, 1, 7, 9, dtype=torch.float64)
    constant = 100 + 1e-12 * torch.randn_like(plane)  # as constant as rounding leaves it
    both = channel_redundancy(torch.cat((plane, other), dim=1))
    assert channel_redundancy(torch.cat((plane, constant, other), dim=1)) == pytest.approx(both)
    assert math.isnan(channel_redundancy(torch.cat((plane, constant), dim=1)))
    with pytest.raises(ValueError, match=r'must be \(N, C, H, W\)'):
        channel_redundancy(plane[0])


def test_gate_shares():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), SCConv(8, 8, 3, padding=1), SRU(8, threshold=0))
    with torch.no_grad():
        model[1].sru.gn.weight.uniform_(0.5, 2)
        model[1].sru.gn.bias.uniform_(-1, 1)
    x = torch.randn(2, 3, 6, 6)
    with record_gate_shares(model) as shares:
        y = model(x)
    gn = model[1].sru.gn
    hidden = nn.functional.group_norm(model[0](x), gn.num_groups, gn.weight, gn.bias, gn.eps).detach().numpy()
    w = (gn.weight / gn.weight.sum()).detach().numpy()[:, None, None]
    assert shares == {'1.sru': pytest.approx((1 / (1 + np.exp(-w * hidden)) > 0.5).mean()), '2': 1.0}
    assert 0 < shares['1.sru'] < 1
    model(x * 2)
    assert y.requires_grad and shares['2'] == 1.0 and not model[2]._forward_hooks


def test_gate_shares_of_a_layer_that_runs_on_several_maps():
    """The towers of a detector's head run on each level of the pyramid."""
    torch.manual_seed(0)
    sru = SRU(8)
    with torch.no_grad():
        sru.gn.weight.normal_()
        sru.gn.bias.normal_()
    maps = [torch.randn(2, 8, size, size) for size in (8, 2)]
    found = []
    for x in maps:
        with record_gate_shares(sru) as shares:
            sru(x)
        found.append(shares[''])
    with record_gate_shares(sru) as shares:
        [sru(x) for x in maps]
    assert shares[''] == pytest.approx((64 * found[0] + 4 * found[1]) / 68) and found[0] != found[1]


def test_outputs():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    x = torch.randn(2, 3, 6, 6)
    with record_outputs({'first': model[0]}) as outputs:
        model(x)
    assert torch.equal(outputs['first'], model[0](x)) and not outputs['first'].requires_grad
