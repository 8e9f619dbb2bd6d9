"""The FLOPs of the ops that convolve, by torch's counter: those of their plain forms."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmscconv import SCConv, ops
from mmscconv.layers import fused
from mmscconv.ops.sru_squeeze import sru_squeeze_plain
from mmscconv.ops.transform_fuse import transform_fuse_plain

CL = torch.channels_last
SRU = (4, 1e-5, 0.0, False)


def map_(*shape):
    return torch.randn(*shape).to(memory_format=CL).requires_grad_()


def weight(*shape):
    return torch.randn(*shape, requires_grad=True)


def counted(function, *arguments):
    with FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return counter.get_total_flops(), result


def both_ways(op, plain):
    """Return the FLOPs of forward and backward by ``op`` and by ``plain``."""
    found = []
    for function in (op, plain):
        forward, outs = counted(function)
        loss = sum(out.sum() for out in ((outs,) if torch.is_tensor(outs) else outs))
        found.append((forward, counted(loss.backward)[0]))
    return found


@pytest.mark.parametrize('pool', [(1, 1), (2, 2)])
def test_sru_squeeze(pool):
    x, up, low = map_(2, 16, 7, 6), weight(5, 6, 1, 1), weight(3, 10, 1, 1)
    arguments = (weight(16), weight(16), *SRU), up, low, (weight(5), None), pool
    if pool != (1, 1):  # for inference only
        (got, _), (want, _) = (counted(f, x, *arguments) for f in (ops.sru_squeeze, sru_squeeze_plain))
        assert got == want > 0
        return
    got, want = both_ways(lambda: ops.sru_squeeze(x, *arguments), lambda: sru_squeeze_plain(x, *arguments))
    assert got == want and min(got) > 0


@pytest.mark.parametrize('settings', [{}, {'stride': 2}, {'kernel_size': (1, 3), 'padding': (0, 1)}], ids=str)
def test_transform_fuse(settings):
    layer = SCConv(16, 24, **{'kernel_size': 3, 'padding': 1, 'gwc_groups': 4, **settings}).cru
    window = layer.gwc_window
    x_up, x_low = map_(2, 4, 8, 6), map_(2, 4, *(8 // window.stride[0], 6 // window.stride[1]))
    up = None if window.centre is not None else map_(2, 4, *x_low.shape[2:])
    arguments = x_up, up, x_low, (layer.gwc.weight, layer.pwc1.weight, layer.pwc2.weight), window
    got, want = both_ways(lambda: ops.transform_fuse(*arguments), lambda: transform_fuse_plain(*arguments))
    assert got == want and min(got) > 0


@pytest.mark.parametrize('settings', [{}, {'stride': 2}, {'inner_norm': True, 'alpha': 0.75}], ids=str)
def test_deployed_layer(settings):
    layer = SCConv(16, 24, **{'kernel_size': 3, 'padding': 1, **settings}).to(memory_format=CL)
    layer.switch_to_deploy()
    x = map_(2, 16, 8, 6).detach()
    arguments = fused.op_arguments(layer.cru, layer.sru, x.dtype)
    with torch.no_grad():
        want, y = counted(layer, x)  # which sees that it is observed
        got, same = counted(ops.scconv, x, *arguments)
    torch.testing.assert_close(same, y, rtol=1e-4, atol=1e-5)
    if 'inner_norm' in settings:  # PWC2 computes all of Y2 by the kernel, as in the layer
        assert layer.cru.makes_all
    assert got == want > 0


def test_torchs_counter_is_not_imported_for_it():
    """Its import brings Triton along."""
    code = (
        'import sys, torch; from mmscconv import SCConv; '
        'y = SCConv(16, 16, 3, padding=1)(torch.randn(1, 16, 4, 4).to(memory_format=torch.channels_last)); '
        'assert not {"torch.utils.flop_counter", "triton"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
