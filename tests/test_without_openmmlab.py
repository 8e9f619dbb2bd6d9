"""An interpreter that cannot import OpenMMLab or torchvision, and what works there."""

import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT

CODE = """
import json, sys
for name in ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision'):
    sys.modules[name] = None
import torch
from torch import nn
import mmscconv


def replaced(name):
    return mmscconv.replace_conv(nn.Sequential(nn.Conv2d(8, 8, 3)), dict(type=name))


def error_of(function, *args):
    try:
        function(*args)
    except Exception as error:
        return f'{type(error).__name__}: {error}'


print(json.dumps({
    'shape': mmscconv.SCConv(8, 8, 3)(torch.zeros(1, 8, 4, 4)).shape,
    'replaced': str(replaced('SCConv')),
    'replaced by a name': error_of(replaced, 'GhostConv'),
    'configs': mmscconv.list_configs(),
    'a config': error_of(mmscconv.get_config, 'scconv_resnet50_imagenet'),
}))
"""


@pytest.fixture(scope='module')
def found():
    done = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_layers_work(found):
    assert found['shape'] == [1, 8, 2, 2]


def test_convolutions_are_replaced_by_scconv_alone(found):
    assert 'replaced by SCConv: 1' in found['replaced']
    assert found['replaced by a name'].startswith('ValueError: ') and 'without mmengine' in found['replaced by a name']


def test_configs_are_listed_and_not_read(found):
    assert 'scconv_resnet50_imagenet' in found['configs']
    assert found['a config'].startswith('UserError: configs are read by mmengine, which cannot be imported')
    assert 'pip install --no-build-isolation onedl-mmengine' in found['a config']
