"""Checkpoints of other runs, which stay, and settings of the hook that are misspelt."""

import shutil
import uuid

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmscconv.hooks import SafeCheckpointHook


class Net(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode='tensor'):
        return [0] if mode == 'predict' else {'loss': (self.weight * torch.stack(list(inputs)).mean()).square()}


class Score(BaseMetric):
    """Numbers that are given."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {'score': next(self.scores), 'other': 1.0}


@pytest.fixture
def train(monkeypatch):
    monkeypatch.setattr(Runner, '_log_env', lambda *_: None)  # which starts compilers to learn their versions

    def run(work_dir, epochs, scores, load_from=None, **saving):
        data = dict(batch_size=2, dataset=[{'inputs': torch.ones(1)}] * 4, sampler=dict(type='DefaultSampler'))
        saving = dict(save_best='score', rule='greater') | saving
        Runner(
            model=Net(),
            work_dir=str(work_dir),
            train_dataloader=data,
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
            val_dataloader=data,
            val_cfg=dict(),
            val_evaluator=[Score(scores)],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(checkpoint=dict(type='SafeCheckpointHook', interval=1, **saving)),
            resume=load_from is not None,
            load_from=load_from and str(load_from),
            experiment_name=uuid.uuid4().hex,
        ).train()

    return run


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def test_a_run_that_goes_on_from_another_one_deletes_none_of_its_checkpoints(train, tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    train(old, 2, [0.5, 0.4], max_keep_ckpts=2)
    there = ['best_score_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth']
    assert names(old) == there
    new.mkdir()
    (new / 'epoch_1.pth').touch()  # of a run that was there before
    train(new, 4, [0.4, 0.3, 0.9], old / 'epoch_2.pth', max_keep_ckpts=2)
    assert names(old) == there
    assert names(new) == ['best_score_epoch_4.pth', 'epoch_1.pth', 'epoch_3.pth', 'epoch_4.pth']


def test_a_copied_folder_replaces_its_own_best_checkpoint(train, tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    train(old, 1, [0.5])
    shutil.copytree(old, new)
    train(new, 2, [0.9], new / 'epoch_1.pth')
    assert names(old) == ['best_score_epoch_1.pth', 'epoch_1.pth']
    assert names(new) == ['best_score_epoch_2.pth', 'epoch_1.pth', 'epoch_2.pth']


def test_several_best_checkpoints_of_another_run(train, tmp_path):
    old, new, best = tmp_path / 'old', tmp_path / 'new', dict(save_best=['score', 'other'], rule='greater')
    train(old, 1, [0.5], **best)
    train(new, 2, [0.9], old / 'epoch_1.pth', **best)
    assert names(old) == ['best_other_epoch_1.pth', 'best_score_epoch_1.pth', 'epoch_1.pth']
    assert names(new) == ['best_score_epoch_2.pth', 'epoch_2.pth']


def test_no_best_checkpoint_is_asked_for(train, tmp_path):
    train(tmp_path, 1, [0.5], save_best=None)
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_misspelt_setting_is_refused_before_the_training():
    with pytest.raises(
        TypeError, match=r'SafeCheckpointHook has no setting max_keep_ckpt: did you mean max_keep_ckpts\?'
    ):
        SafeCheckpointHook(interval=1, max_keep_ckpt=1)
    with pytest.raises(TypeError, match=r'SafeCheckpointHook has no setting colour$'):
        HOOKS.build(dict(type='SafeCheckpointHook', colour=1))


def test_a_metric_that_is_not_measured_is_told_once(train, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr('mmscconv.hooks.safe_checkpoint.warn', lines.append)
    train(tmp_path, 2, [0.5, 0.6], save_best='scor')
    assert lines == [
        'no best checkpoint is saved: save_best is scor, which was not measured; measured were score, other '
        '(default_hooks.checkpoint.save_best)'
    ]
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
