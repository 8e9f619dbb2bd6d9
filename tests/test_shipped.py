"""The shipped configs by name: in a checkout here, in a wheel in test_packaging.py."""

from pathlib import Path

import pytest
from mmengine.config import Config

import mmscconv
from helpers.paths import ROOT
from mmscconv.errors import UserError


def test_names_are_the_files():
    names = mmscconv.list_configs()
    files = [p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts]
    assert sorted(ROOT / 'configs' / f'{name}.py' for name in names) == sorted(files)
    assert names == sorted(names)
    # A name without its folder is enough to find any of them.
    assert len({Path(name).name for name in names}) == len(names)


def test_pattern():
    assert mmscconv.list_configs('retinanet_scconv_r50_*') == ['retinanet_scconv_r50_coco', 'retinanet_scconv_r50_voc']
    assert mmscconv.list_configs('scconv_resnet56_cifar10') == []
    assert 'cifar/scconv_resnet56_cifar10' in mmscconv.list_configs('*/scconv_*')


@pytest.mark.parametrize(
    'name', ['cifar/scconv_resnet56_cifar10', 'scconv_resnet56_cifar10', 'scconv_resnet56_cifar10.py']
)
def test_config_by_name(name):
    cfg = mmscconv.get_config(name)
    assert Path(cfg.filename) == ROOT / 'configs' / 'cifar' / 'scconv_resnet56_cifar10.py'
    assert cfg.model.backbone.conv_cfg.type == 'SCConv'


def test_unknown_names_show_the_nearest():
    with pytest.raises(
        UserError, match=r"no config 'retinanet_sconv_r50_coco': did you mean .*\bretinanet_scconv_r50_coco\b"
    ):
        mmscconv.get_config('retinanet_sconv_r50_coco')
    with pytest.raises(UserError, match=r"no config 'zzz': mmscconv.list_configs\(\) names them all"):
        mmscconv.get_config('zzz')


def test_inheriting_as_the_page_of_configs_says(tmp_path):
    lines = (ROOT / 'docs' / 'configs.md').read_text().splitlines()
    (line,) = {line for line in lines if line.startswith('_base_ = __import__')}
    (tmp_path / 'mine.py').write_text(f'{line}\nmodel = dict(bbox_head=dict(num_classes=3))\n')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    assert cfg.model.bbox_head.num_classes == 3
    assert cfg.model.backbone.type == 'SCConvResNet'
