"""Models that tools/export.py takes, with weights and statistics that training might give."""

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import mmscconv.datasets
import mmscconv.models  # noqa: F401
from helpers.paths import ROOT

CONFIGS = ROOT / 'configs'
DETECTOR = CONFIGS / 'retinanet_scconv_r18_digits.py'
CLASSIFIER = CONFIGS / 'cifar' / 'scconv_resnet56_cifar10_folder.py'
SHALLOW = ['--cfg-options', 'model.backbone.depth=8']


def build(config, path, **backbone):
    """Return the config's model with weights and statistics that training might give, also written to ``path``."""
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(backbone)
    init_default_scope(cfg.default_scope)
    settings = dict(cfg.model)
    settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    model = MODELS.build(settings).eval()
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': list('0123456789')}}}, path)
    return model


def altered_outputs(monkeypatch, kind):
    """Let files of this format, once they are written, answer one per cent too much."""
    from mmscconv.export import writing

    write, opened = writing.FUNCTIONS[kind]

    def altered(file):
        call = opened(file)
        return lambda *inputs: [1.01 * t for t in call(*inputs)]

    monkeypatch.setitem(writing.FUNCTIONS, kind, (write, altered))
