"""The tools' runner beside mmengine's, and the reach of --data-root."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmscconv.checks.files import check_data
from mmscconv.configuration import move_data_root
from mmscconv.engine.runner import CheckedRunner
from mmscconv.errors import UserError


@pytest.mark.parametrize(
    ('batch', 'counts', 'devices', 'ratio'),
    [(4, 4, 1, 1.0), (16, 1, 1, 1.0), (4, 1, 1, 0.25), (16, 2, 1, 2.0), (4, 1, 2, 0.5), (4, 4, 2, 2.0)],
)
def test_the_scaled_lr_counts_accumulated_gradients_and_devices(batch, counts, devices, ratio):
    runner = object.__new__(CheckedRunner)
    loader = dict(batch_size=batch)
    runner._train_dataloader, runner._world_size, runner.param_schedulers = loader, devices, []
    runner.logger, runner._resume = logging.getLogger('test'), False
    parameter = torch.nn.Parameter(torch.ones(1))
    wrapper = OptimWrapper(torch.optim.SGD([parameter], lr=0.5), accumulative_counts=counts)
    runner.scale_lr(wrapper, dict(enable=True, base_batch_size=16))
    assert wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(0.5 * ratio)
    assert runner._train_dataloader is loader
    runner._resume, runner._load_from = True, 'epoch_1.pth'  # whose lr comes with the optimizer's state
    runner.scale_lr(wrapper, dict(enable=True, base_batch_size=1))
    assert wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(0.5 * ratio)


def config(root, *roots, other=''):
    loaders = {
        f'{s}_dataloader': dict(dataset=dict(data_root=r)) for s, r in zip(('train', 'val'), roots, strict=False)
    }
    return Config(dict(data_root=root, val_evaluator=dict(ann_file=f'{roots[-1]}/val.json'), other=other, **loaders))


def roots(cfg):
    return [cfg.train_dataloader.dataset.data_root, cfg.val_dataloader.dataset.data_root, cfg.val_evaluator.ann_file]


def test_a_loader_without_workers():
    """Configs have persistent workers, which torch refuses to have none of."""
    settings = dict(batch_size=1, num_workers=0, persistent_workers=True, prefetch_factor=2)
    loader = CheckedRunner.build_dataloader(
        dict(**settings, dataset=[0, 1], sampler=dict(type='DefaultSampler', shuffle=False))
    )
    assert loader.num_workers == 0 and len(loader) == 2


def test_data_root_moves_what_begins_with_it():
    cfg = config('data/a/', 'data/a/', 'elsewhere', other='data/ab')
    move_data_root(cfg, '/mine')
    assert roots(cfg) == ['/mine/', 'elsewhere', 'elsewhere/val.json'] and cfg.other == 'data/ab'


def test_data_root_of_a_config_whose_data_sets_are_inherited():
    cfg = config('/x', 'data/a/', 'data/a', other='/x/y')
    move_data_root(cfg, '/mine')
    assert roots(cfg) == ['/mine/', '/mine', '/mine/val.json'] and cfg.other == '/mine/y'
    cfg = config('/x', 'data/a', '/x/y')
    move_data_root(cfg, '/mine')
    assert roots(cfg) == ['data/a', '/mine/y', '/mine/y/val.json']
    with pytest.raises(UserError, match=r"the config's data_root '/x', but its data sets have 'data/a', 'data/b'"):
        move_data_root(config('/x', 'data/a', 'data/b'), '/mine')


def test_a_data_root_that_no_data_set_reads_is_told():
    with pytest.raises(UserError, match=r"not there: nowhere/ .*; the data_root='/x' at the top .* is not read"):
        check_data(config('/x', 'nowhere/', 'nowhere/'), ['train'])
    with pytest.raises(UserError, match=r'not there: nowhere/ \(put or link .* --data-root\)'):
        check_data(config('nowhere', 'nowhere/', 'nowhere/'), ['train'])


def test_nothing_to_find_is_never_the_best(tmp_path, monkeypatch):
    from mmscconv.hooks import SafeCheckpointHook

    lines, saved = [], []
    monkeypatch.setattr('mmscconv.hooks.safe_checkpoint.warn', lines.append)
    hook = SafeCheckpointHook(save_best=['coco/bbox_mAP', 'loss'], rule=['greater', 'less'], out_dir=str(tmp_path))
    hub = SimpleNamespace(runtime_info={}, update_info=lambda *_: None, get_info=lambda key: None)
    hook.last_ckpt, hook.best_ckpt_path_dict = None, {'coco/bbox_mAP': None, 'loss': None}
    hook.file_backend = SimpleNamespace(delete=lambda kept: None, join_path=lambda *parts: '/'.join(parts))
    runner = SimpleNamespace(
        epoch=1, iter=1, message_hub=hub, logger=logging.getLogger('test'), model=torch.nn.Conv2d(1, 1, 1),
        save_checkpoint=lambda folder, filename, **_: saved.append(filename),
    )  # fmt: skip
    hook._save_best_checkpoint(runner, {'coco/bbox_mAP': -1.0, 'loss': -1.0})
    assert saved == ['best_loss_epoch_1.pth'] and len(lines) == 1 and 'coco/bbox_mAP is -1.0: ' in lines[0]
    hook._save_best_checkpoint(runner, {'coco/bbox_mAP': float('nan'), 'loss': float('nan')})
    hook._save_best_checkpoint(runner, {'coco/bbox_mAP': 0.0, 'loss': float('inf')})
    assert saved == ['best_loss_epoch_1.pth', 'best_coco_bbox_mAP_epoch_1.pth']
