from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS

from mmscconv.hooks import ChannelsLast
from mmscconv.models import CIFARResNet


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
