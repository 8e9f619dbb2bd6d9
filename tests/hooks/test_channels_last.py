from types import SimpleNamespace

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmengine.registry import HOOKS

from mmscconv.hooks import ChannelsLast
from mmscconv.models import CIFARResNet


def test_modules_that_read_channels_first_alone_keep_their_numbers(monkeypatch):
    """mmcv's deformable convolution would read a channels-last map as if it were channels first."""
    lines = []
    monkeypatch.setattr('mmscconv.hooks.channels_last.warn', lines.append)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), ModulatedDeformConv2dPack(8, 8, 3, padding=1)).eval()
    torch.nn.init.normal_(model[1].conv_offset.weight, std=0.1)
    x = torch.randn(2, 3, 12, 10)
    want = model(x)
    hook = ChannelsLast()
    hook.before_train(SimpleNamespace(model=model))
    hook.before_val(SimpleNamespace(model=model))
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    assert lines == ['the model stays in channels first, for 1 is of mmcv.ops, which reads no other format']


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_weights_and_maps_are_channels_last_and_results_the_same(stage):
    model = CIFARResNet(8, conv_cfg=dict(type='SCConv'))
    x = torch.randn(2, 3, 32, 32)
    model.eval()
    want = model(x)[0]
    getattr(HOOKS.build(dict(type='ChannelsLast')), f'before_{stage}')(SimpleNamespace(model=model))
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv1(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x)[0], want, rtol=1e-4, atol=1e-5)


def test_other_devices_are_left_alone():
    model = CIFARResNet(8)
    ChannelsLast(devices=['cuda']).before_train(SimpleNamespace(model=model))
    assert not model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
