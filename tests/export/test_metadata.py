"""The metadata of exported files."""

import json
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from torch import nn

from mmscconv.errors import UserError
from mmscconv.export.metadata import class_names, describe


def model_with(head=None, **preprocessor):
    model = nn.Module()
    model.data_preprocessor = SimpleNamespace(**preprocessor)
    if head is not None:
        model.bbox_head = nn.Module()
        model.bbox_head.num_classes = head
    return model


@pytest.mark.parametrize(
    ('arrays', 'converts', 'order'),
    [('BGR', True, 'RGB'), ('BGR', False, 'BGR'), ('RGB', False, 'RGB'), ('RGB', True, 'BGR')],
)
def test_channel_order_is_that_of_the_network_s_input(arrays, converts, order):
    """CIFAR's data sets hold RGB arrays, files are read as BGR; the data preprocessor may turn either around."""
    kind = dict(BGR='CustomDataset', RGB='mmpretrain.CIFAR10')[arrays]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(type=kind))))
    found = describe(cfg, model_with(to_rgb=converts), SimpleNamespace(divisor=32), ['a', 'b'], deployed=False)
    assert json.loads(found['channel_order']) == order and json.loads(found['classes']) == ['a', 'b']


@pytest.mark.parametrize(('preprocessor', 'value'), [(dict(pad_value=114.5), 114.5), ({}, 0)])
def test_the_value_of_the_padding_is_the_data_preprocessor_s(preprocessor, value):
    found = describe(Config(), model_with(**preprocessor), SimpleNamespace(divisor=32), [], deployed=False)
    assert json.loads(found['pad_value']) == value


def names_of(cfg, meta):
    return class_names(Config(cfg), model_with(head=2), dict(meta=meta), 'a.pth', None)


def test_classes_are_the_checkpoint_s_also_of_mmdet_2():
    for meta in (dict(CLASSES=('x', 'y')), dict(dataset_meta=dict(classes=['x', 'y']))):
        assert names_of(dict(metainfo=dict(classes=('a',))), meta) == ['x', 'y']


@pytest.mark.parametrize('place', ['the top', 'the data set', 'its classes'])
def test_classes_of_a_file_are_its_lines(place, tmp_path):
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    written = dict(classes=str(tmp_path / 'classes.txt'))
    dataset = dict(type='CustomDataset', **(written if place == 'its classes' else dict(metainfo=written)))
    cfg = dict(metainfo=written) if place == 'the top' else dict(test_dataloader=dict(dataset=dataset))
    assert names_of(cfg, {}) == ['cat', 'dog']


def test_classes_of_the_data_set_alone():
    names = dict(metainfo=dict(classes=('cat', 'dog')))
    assert names_of(dict(test_dataloader=dict(dataset=dict(type='A', **names))), {}) == ['cat', 'dog']
    cfg, model = Config(), model_with(head=2)
    assert class_names(cfg, model, {}, 'a.pth', ('cat', 'dog')) == ['cat', 'dog']  # as built


def test_classes_that_nothing_names_are_said_to_be_unknown(monkeypatch):
    said = []
    monkeypatch.setattr('mmscconv.export.metadata.warn', said.append)
    assert class_names(Config(), model_with(head=2), {}, 'a.pth', None) == []
    assert 'a.pth' in said[0] and 'metainfo.classes' in said[0]


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat',), 'model.bbox_head.num_classes is 2, but .* has 1 classes'),
        ('classes.txt', "has classes='classes.txt', a text whose letters would be the classes"),
    ],
)
def test_names_that_are_not_the_outputs_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        names_of(dict(metainfo=dict(classes=classes)), {})
