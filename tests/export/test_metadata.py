"""The metadata of exported files."""

import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch import nn

from mmscconv.export.metadata import describe


@pytest.mark.parametrize(
    ('arrays', 'converts', 'order'),
    [('BGR', True, 'RGB'), ('BGR', False, 'BGR'), ('RGB', False, 'RGB'), ('RGB', True, 'BGR')],
)
def test_channel_order_is_that_of_the_network_s_input(arrays, converts, order):
    """CIFAR's data sets hold RGB arrays, files are read as BGR; the data preprocessor may turn either around."""
    kind = dict(BGR='CustomDataset', RGB='mmpretrain.CIFAR10')[arrays]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type=kind)), metainfo=dict(classes=('a', 'b'))))
    model = nn.Module()
    model.data_preprocessor = SimpleNamespace(to_rgb=converts)
    found = describe(cfg, model, SimpleNamespace(divisor=32), {}, deployed=False)
    assert json.loads(found['channel_order']) == order and json.loads(found['classes']) == ['a', 'b']


def test_classes_are_the_checkpoint_s_also_of_mmdet_2():
    model = nn.Module()
    model.data_preprocessor = SimpleNamespace()
    for meta in (dict(CLASSES=('x', 'y')), dict(dataset_meta=dict(classes=['x', 'y']))):
        found = describe(
            Config(dict(metainfo=dict(classes=('a',)))), model, SimpleNamespace(divisor=1), dict(meta=meta), False
        )
        assert json.loads(found['classes']) == ['x', 'y']
