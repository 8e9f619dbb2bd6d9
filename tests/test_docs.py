"""The documentation's own code: the tutorials' configs build. test_packaging.py runs the tutorial's commands."""

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers.configs import build
from helpers.tutorials import blocks
from mmscconv import SCConv


def number_of_scconvs(model):
    return sum(isinstance(module, SCConv) for module in model.modules())


@pytest.mark.parametrize(
    ('page', 'index', 'scconvs'),
    [
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
