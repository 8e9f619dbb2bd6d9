"""The model type ReplaceConv: from a config to the optimizer, to a checkpoint and back."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from helpers.configs import YOLOX
from mmscconv import SCConv

RETINANET = """
_base_ = '{root}/configs/retinanet_r18_digits.py'
custom_imports = dict(imports=['mmscconv.models'], allow_failed_imports=False)
model = dict(type='ReplaceConv', model='RetinaNet', conv_cfg=dict(type='SCConv'), match='backbone.*',
             backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64]))
"""
WHOLE_YOLOX = """
_base_ = '{root}/configs/retinanet_r18_digits.py'
custom_imports = dict(imports=['mmscconv.models'], allow_failed_imports=False)
model = dict(_delete_=True, type='ReplaceConv', conv_cfg=dict(type='SCConv'),
             match=['backbone.stage[34].*', 'neck.*'], model={yolox})
"""


def yolox_model():
    from mmengine.hub import get_config

    cfg = get_config('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py')
    cfg.merge_from_dict({**YOLOX, 'model.bbox_head.num_classes': 10})
    return cfg.model.to_dict()


def written_config(tmp_path, root, text, digits):
    path = tmp_path / 'config.py'
    path.write_text(text.format(root=root, yolox=yolox_model()))
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {
            'work_dir': str(tmp_path / 'work'),
            'train_dataloader.dataset.data_root': str(digits),
            'train_dataloader.batch_size': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'train_cfg.max_epochs': 1,
            'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1),
            'auto_scale_lr.base_batch_size': 2,
            'log_level': 'ERROR',
        }
    )
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg[key] = None
    return cfg


@pytest.mark.parametrize(
    ('text', 'kind', 'count'), [(RETINANET, 'RetinaNet', 16), (WHOLE_YOLOX, 'YOLOX', 12)], ids=['retinanet', 'yolox']
)
def test_trains_saves_and_loads(tmp_path, root, digits, text, kind, count):
    cfg = written_config(tmp_path, root, text, digits)
    runner = Runner.from_cfg(cfg)
    new = {name: m for name, m in runner.model.named_modules() if isinstance(m, SCConv)}
    assert type(runner.model).__name__ == kind and len(new) == count
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    optimized = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    for name, layer in new.items():
        for key, parameter in layer.named_parameters():
            assert id(parameter) in optimized
            assert not torch.equal(parameter, before[f'{name}.{key}']), f'{name}.{key} was not trained'

    cfg.load_from = (tmp_path / 'work' / 'last_checkpoint').read_text()
    # Strict: the built model must have just the keys that were saved.
    again = MODELS.build(cfg.model)
    again.load_state_dict(torch.load(cfg.load_from, weights_only=False)['state_dict'])
    cfg.merge_from_dict({'train_cfg.max_epochs': 2, 'resume': True, 'experiment_name': f'{kind}_resumed'})
    resumed = Runner.from_cfg(cfg)
    resumed.load_or_resume()
    assert resumed.epoch == 1
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)


def test_inference_api(tmp_path, root):
    """mmdet's init_detector reads model.backbone of the config, which the form with a name keeps."""
    from mmdet.apis import init_detector

    path = tmp_path / 'config.py'
    path.write_text(RETINANET.format(root=root))
    model = init_detector(str(path), device='cpu')
    assert type(model).__name__ == 'RetinaNet' and isinstance(model.backbone.layer1[0].conv2, SCConv)


def test_settings_beside_a_whole_model():
    import mmscconv.models  # noqa: F401, registers ReplaceConv

    cfg = dict(type='ReplaceConv', model=dict(type='RetinaNet'), conv_cfg=dict(type='SCConv'), backbone=dict())
    with pytest.raises(ValueError, match='backbone must stand inside of model'):
        MODELS.build(cfg)
