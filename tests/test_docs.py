"""The documentation's own code: the tutorials' configs build, and the one for an own data set trains."""

import json
import re

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from test_configs import build

from mmscconv import SCConv
from tools import NARROW_DETECTOR, ONE_WORKER, SMALL_TRAIN, run_tool

TUTORIALS = ROOT / 'docs' / 'tutorials'


def blocks(page):
    """Each Python block of a tutorial."""
    return re.findall(r'^```python\n(.*?)^```', (TUTORIALS / page).read_text(), re.DOTALL | re.MULTILINE)


def number_of_scconvs(model):
    return sum(isinstance(module, SCConv) for module in model.modules())


@pytest.mark.parametrize(
    ('page', 'index', 'scconvs'),
    [
        ('own_dataset.md', 0, 16),
        ('own_detector.md', 0, 16),
        ('own_detector.md', 1, 16 + 5),  # FPN's five; the stem has an odd number of channels
        ('own_detector.md', 2, 8),
        ('pretrain_to_detect.md', 0, 16),
        ('pretrain_to_detect.md', 1, 16),
    ],
)
def test_configs_of_the_tutorials_build(page, index, scconvs, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(blocks(page)[index])
    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    assert number_of_scconvs(build(cfg)) == scconvs


@pytest.fixture
def own_dataset(digits, tmp_path):
    """The digits as cats, dogs and fishes."""
    folder = tmp_path / 'mine'
    (folder / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        (folder / split).symlink_to(digits / split)
        content = json.loads((digits / 'annotations' / f'{split}.json').read_text())
        content['categories'] = [dict(id=i, name=name) for i, name in enumerate(('cat', 'dog', 'fish'), start=7)]
        for annotation in content['annotations']:
            annotation['category_id'] = 7 + annotation['category_id'] % 3
        (folder / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return folder


def test_own_dataset_trains(own_dataset, tmp_path):
    config = tmp_path / 'my_retinanet.py'
    config.write_text(blocks('own_dataset.md')[0])
    done = run_tool(
        'train.py', config, '--data-root', own_dataset, '--work-dir', tmp_path / 'run',
        options=[*NARROW_DETECTOR, *ONE_WORKER, *SMALL_TRAIN, 'train_dataloader.dataset.pipeline.2.scale=(64,64)',
                 'val_dataloader.dataset.pipeline.1.scale=(64,64)'],
    )  # fmt: skip
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()
    assert 'bbox_mAP' in done.text
