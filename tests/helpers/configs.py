"""Shipped configs, as they are and narrowed for a test."""

import copy
from unittest.mock import patch

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from helpers.paths import ROOT

_read, _known = Config._file2dict, {}


def load(name):
    """Return a shipped config, and read the files that it inherits once for all configs: they are eight a config."""
    with patch.object(Config, '_file2dict', _read_once):
        cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


def _read_once(filename, *args, **kwargs):
    key = str(filename)
    if key not in _known:
        _known[key] = _read(filename, *args, **kwargs)
    return copy.deepcopy(_known[key])


def load_all(names):
    """Yield (name, config) of each of ``names``."""
    for name in names:
        yield name, load(name)


def build(cfg):
    # mmpretrain keeps the preprocessor beside the model and joins them in its runner.
    model = dict(cfg.model, data_preprocessor=cfg.model.get('data_preprocessor') or cfg.data_preprocessor)
    return MODELS.build(model)


def shrink(cfg):
    """Narrow the network and freeze nothing, keeping everything that the config decides."""
    cfg.model.backbone.update(base_channels=16, stem_channels=8)
    widths = [16, 32, 64, 128] if cfg.model.backbone.depth == 18 else [64, 128, 256, 512]
    if cfg.default_scope == 'mmdet':
        cfg.model.neck.update(in_channels=widths, out_channels=16)
        cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    else:
        cfg.model.head.in_channels = widths[-1]
    return cfg


# Options that make YOLOX small.
YOLOX = {
    'model.data_preprocessor.batch_augments': None,
    'model.backbone.widen_factor': 0.125,
    'model.backbone.deepen_factor': 0.33,
    'model.neck.in_channels': [32, 64, 128],
    'model.neck.out_channels': 32,
    'model.bbox_head.in_channels': 32,
    'model.bbox_head.feat_channels': 32,
    'model.bbox_head.num_classes': 3,
}
