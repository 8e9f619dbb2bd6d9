"""A killed training, a damaged file, a full disk: the training goes on exactly, or stops with one line."""

import errno
import importlib
import inspect
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import uuid
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Dataset

from helpers.paths import ROOT
from helpers.running_tools import DIGITS
from mmscconv import SRU
from mmscconv.errors import UserError
from mmscconv.hooks.safe_checkpoint import AtomicBackend
from mmscconv.storage import disk
from mmscconv.storage.checkpoints import checkpoint_to_resume, last_good_checkpoint
from reliability.kill_resume import compare_logs, equal, load, records

LOOPS = {
    'iterations': (dict(by_epoch=False, max_iters=12, val_interval=6), 'iter_12.pth'),
    'epochs': (dict(by_epoch=True, max_epochs=6, val_interval=3), 'epoch_6.pth'),
}


def draw():
    return random.random() + np.random.rand() + torch.rand(()).item()


class Noise(Dataset):
    """Samples that use every generator, as augmentations do."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {'inputs': torch.full((4, 2, 2), i + draw()) + torch.rand(4, 2, 2)}


class WholeBatches(Noise):
    """Gives whole batches, as ImagesInMemory does."""

    def __getitems__(self, indices):
        return [self[i] for i in indices]


class Net(BaseModel):
    """Dropout, and numbers from every generator in the training's own process."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 1), SRU(8), nn.Dropout(0.5), nn.Conv2d(8, 1, 1))

    def forward(self, inputs, mode='tensor'):
        if mode == 'predict':
            draw()  # a validation must not change the training that goes on after it
            return [self.layers[0].weight.sum().item()]
        return {'loss': (self.layers(torch.stack(list(inputs)) * draw()) - 1).square().mean()}


class Score(BaseMetric):
    """The weights' sum, which grows or falls from one validation to the next."""

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return {'score': results[0]}


class FullDisk(Hook):
    """From an iteration on no file may be larger than a log."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


def kill_at(owner, name, call):
    """Let the process end as by kill -9 in place of the given call of a function."""
    left, function = [call], getattr(owner, name)

    def maybe(*args, **kwargs):
        left[0] -= 1
        if left[0]:
            return function(*args, **kwargs)
        if name == 'fsync':
            os.ftruncate(args[0], 1000)  # only a part of the file had reached the disk
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, maybe)


def train(work_dir, loop, hooks=(), kill=None, resume=False, seed=0, train_cfg=None, saving=None, **loader):
    """Train in a child process; return its exit code, and what a UserError said in work_dir/error.txt."""

    def run():
        output = os.open(work_dir / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        torch.manual_seed(1)
        Runner._log_env = lambda *_: None  # which starts compilers to learn their versions
        if kill:
            kill_at(*kill)
        by_epoch = loop == 'epochs'
        sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
        settings = dict(batch_size=4, num_workers=0, dataset=Noise(), sampler=sampler) | loader
        runner = Runner(
            model=Net(),
            work_dir=str(work_dir),
            train_dataloader=settings,
            train_cfg=LOOPS[loop][0] | (train_cfg or {}),
            val_dataloader=dict(batch_size=8, dataset=Noise(), sampler=dict(type='DefaultSampler', shuffle=False)),
            val_cfg=dict(),
            val_evaluator=[Score()],
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.05)),
            param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=by_epoch),
                checkpoint=dict(
                    type='SafeCheckpointHook', max_keep_ckpts=1, save_best='score', rule='less',
                    **(saving or dict(interval=3, by_epoch=by_epoch)),
                ),
                exact_resume=dict(type='ExactResume'),
            ),
            custom_hooks=[dict(type='EMAHook', momentum=0.1), *hooks],
            log_processor=dict(window_size=1, by_epoch=by_epoch),
            randomness=dict(seed=seed),
            resume=resume,
            experiment_name=uuid.uuid4().hex,
        )  # fmt: skip
        try:
            runner.train()
        except UserError as error:
            (work_dir / 'error.txt').write_text(str(error))

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def checkpoints(work_dir):
    return sorted(path.name for path in work_dir.glob('*.pth'))


def assert_same(whole, resumed, loop):
    name = LOOPS[loop][1]
    assert compare_logs(records(whole), records(resumed)) == (True, True)
    assert equal(load(whole / name), load(resumed / name))
    assert checkpoints(whole) == checkpoints(resumed)  # the best one, too
    assert not list(resumed.glob('*.part'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Work dirs of trainings that nothing stopped."""
    for module in ('matplotlib.backends.backend_agg', 'torch._dynamo'):
        importlib.import_module(module)  # or each child would, for seconds
    folders = {loop: tmp_path_factory.mktemp(f'whole_{loop}') for loop in LOOPS}
    for loop, folder in folders.items():
        assert train(folder, loop) == 0
    return folders


# The call that the process was about to make, and its number. A checkpoint takes
# four calls of fsync: file and folder, for itself and for last_checkpoint.
MOMENTS = {
    'an iteration': (Net, 'train_step', 8),
    'writing a checkpoint': (os, 'fsync', 5),
    'renaming a checkpoint': (Path, 'replace', 3),
    'writing last_checkpoint': (os, 'fsync', 7),
    'a validation': (Net, 'val_step', 2),
    'deleting an outdated one': (AtomicBackend, 'remove', 1),
}


@pytest.mark.parametrize(
    ('loop', 'moment'),
    [
        *(('iterations', moment) for moment in MOMENTS),
        *(('epochs', moment) for moment in ('an iteration', 'writing a checkpoint', 'a validation')),
    ],
)
def test_a_killed_training_goes_on_as_if_nothing_had_happened(loop, moment, whole, tmp_path):
    assert train(tmp_path, loop, kill=MOMENTS[moment]) == -signal.SIGKILL
    last = (tmp_path / 'last_checkpoint').read_text()
    assert last == str(checkpoint_to_resume(tmp_path, pytest.fail))
    assert train(tmp_path, loop, resume=True) == 0
    if moment == 'deleting an outdated one':  # that one stays behind
        stayed = set(checkpoints(tmp_path)) - set(checkpoints(whole[loop]))
        assert len(stayed) == 1
        (tmp_path / stayed.pop()).unlink()
    assert_same(whole[loop], tmp_path, loop)


@pytest.mark.parametrize('loop', LOOPS)
def test_the_number_of_workers_changes_nothing(loop, whole, tmp_path):
    workers = dict(num_workers=2, persistent_workers=True)
    assert train(tmp_path, loop, kill=(Net, 'train_step', 8), **workers) == -signal.SIGKILL
    assert train(tmp_path, loop, resume=True) == 0
    assert_same(whole[loop], tmp_path, loop)


def test_batches_of_a_data_set_that_makes_them_itself(tmp_path):
    runs = tmp_path / 'whole', tmp_path / 'killed'
    for run in runs:
        run.mkdir()
    assert train(runs[0], 'epochs', dataset=WholeBatches()) == 0
    assert train(runs[1], 'epochs', dataset=WholeBatches(), kill=(Net, 'train_step', 8)) == -signal.SIGKILL
    assert train(runs[1], 'epochs', dataset=WholeBatches(), resume=True) == 0
    assert_same(*runs, 'epochs')


@pytest.mark.parametrize(
    ('interval', 'step'), [(7, 9), (4, 6), (5, 6)], ids=['after a validation', 'at its end', 'before one']
)
@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_goes_on_within_an_epoch(interval, step, workers, tmp_path):
    """An epoch has two batches, and two of the three checkpoints lie after the first."""
    runs = tmp_path / 'whole', tmp_path / 'killed'
    for run in runs:
        run.mkdir()
    settings = dict(saving=dict(interval=interval, by_epoch=False), num_workers=workers)
    assert train(runs[0], 'epochs', **settings) == 0
    assert train(runs[1], 'epochs', kill=(Net, 'train_step', step), **settings) == -signal.SIGKILL
    assert checkpoints(runs[1])[-1] == f'iter_{interval}.pth'
    assert train(runs[1], 'epochs', resume=True, **settings) == 0
    validated = [line['step'] for line in records(runs[1]) if 'score' in line]
    assert validated == [3, 6]
    assert compare_logs(records(runs[0]), records(runs[1])) == (True, True)
    assert equal(load(runs[0] / 'iter_12.pth'), load(runs[1] / 'iter_12.pth'))
    assert checkpoints(runs[0]) == checkpoints(runs[1])
    seen = [line['step'] for line in records(runs[1]) if 'loss' in line]
    assert seen == [*range(1, step), *range(interval + 1, 13)]


class OtherSampler(DefaultSampler):
    """One whose passes may have any number of batches."""


@pytest.mark.parametrize('sampler', [DefaultSampler, OtherSampler])
@pytest.mark.parametrize('step', [8, 11], ids=['after whole passes', 'within a pass'])
def test_iterations_over_a_sampler_that_ends(sampler, step, tmp_path, monkeypatch):
    """The data are gone through several times, and a resumed training may leave whole passes out."""
    monkeypatch.setattr('time.sleep', lambda _: None)  # mmengine waits between two passes
    runs = tmp_path / 'whole', tmp_path / 'killed'
    for run in runs:
        run.mkdir()
    loader = dict(sampler=dict(type=sampler, shuffle=True))
    assert train(runs[0], 'iterations', **loader) == 0
    assert train(runs[1], 'iterations', kill=(Net, 'train_step', step), **loader) == -signal.SIGKILL
    assert train(runs[1], 'iterations', resume=True, **loader) == 0
    assert_same(*runs, 'iterations')


def test_fast_forward_skips_once(whole, tmp_path):
    if 'fast_forward_on_resume' not in inspect.signature(IterBasedTrainLoop).parameters:
        pytest.skip('this mmengine has no fast_forward_on_resume')
    assert train(tmp_path, 'iterations', kill=(Net, 'train_step', 8)) == -signal.SIGKILL
    assert train(tmp_path, 'iterations', resume=True, train_cfg=dict(fast_forward_on_resume=True)) == 0
    assert_same(whole['iterations'], tmp_path, 'iterations')


def test_a_resumed_training_keeps_its_seed(whole, tmp_path):
    """Also where the config has none, and each start draws another one."""
    assert train(tmp_path, 'iterations', kill=(Net, 'train_step', 8)) == -signal.SIGKILL
    assert train(tmp_path, 'iterations', resume=True, seed=1) == 0
    assert_same(whole['iterations'], tmp_path, 'iterations')


def test_another_seed_gives_another_training(whole, tmp_path):
    assert train(tmp_path, 'iterations', seed=1) == 0
    assert compare_logs(records(whole['iterations']), records(tmp_path))[0] is False


def test_what_was_seen_is_not_loaded_again(tmp_path):
    loaded = tmp_path / 'loaded'
    loaded.mkdir()

    class Counted(Noise):
        def __getitem__(self, i):
            (loaded / uuid.uuid4().hex).touch()
            return super().__getitem__(i)

    assert train(tmp_path, 'iterations', kill=(Net, 'train_step', 11), dataset=Counted()) == -signal.SIGKILL
    before = len(list(loaded.iterdir()))
    assert train(tmp_path, 'iterations', resume=True, dataset=Counted()) == 0
    assert len(list(loaded.iterdir())) - before == 4 * 3  # three iterations after the ninth, validations are plain


@pytest.mark.parametrize('loop', LOOPS)
def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(loop, whole, tmp_path):
    assert train(tmp_path, loop, hooks=[FullDisk()]) == 0
    message = (tmp_path / 'error.txt').read_text()
    name = 'iter_6.pth' if loop == 'iterations' else 'epoch_3.pth'
    assert message.startswith(f'cannot write {tmp_path / name}: File too large (')
    assert f' MiB free in {tmp_path}; make room there, then go on with --resume)' in message
    assert '\n' not in message
    if loop == 'iterations':
        assert checkpoints(tmp_path) == ['iter_3.pth']
        assert last_good_checkpoint(tmp_path).name == 'iter_3.pth'
    assert not list(tmp_path.glob('*.part'))
    (tmp_path / 'error.txt').unlink()
    assert train(tmp_path, loop, resume=True) == 0
    assert_same(whole[loop], tmp_path, loop)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'file'
    disk.write_atomically(path, b'old')

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='No space left on device') as error, disk.full_disk_named(path):
        disk.write_atomically(path, b'new')
    assert f'cannot write {path}: ' in str(error.value) and f'MiB free in {path.parent};' in str(error.value)
    assert [p.name for p in path.parent.iterdir()] == ['file'] and path.read_bytes() == b'old'
    with pytest.raises(PermissionError), disk.full_disk_named(path):
        raise PermissionError(errno.EACCES, 'another matter')


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EBADF, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_flush_a_folder(code, tmp_path, monkeypatch):
    flush = os.fsync

    def fsync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(code, os.strerror(code))
        flush(number)

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match=os.strerror(code)) if code == errno.EIO else nullcontext():
        disk.write_atomically(tmp_path / 'file', b'new')
    assert (tmp_path / 'file').read_bytes() == b'new'


def damaged(path, source):
    path.write_bytes(source.read_bytes()[:-2000])


def test_resume_leaves_out_what_is_damaged(whole, tmp_path):
    source = whole['iterations'] / 'iter_12.pth'
    assert checkpoint_to_resume(tmp_path, pytest.fail) is None
    for age, name in enumerate(('iter_4.pth', 'iter_8.pth', 'iter_9.pth', 'iter_12.pth', 'best_score_iter_13.pth')):
        shutil.copy(source, tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    (tmp_path / 'last_checkpoint').write_text('/where/it/was/before/iter_8.pth')
    assert checkpoint_to_resume(tmp_path, pytest.fail).name == 'iter_8.pth'
    for content in (b'', b'\xff\xfe'):  # as a kill in mmengine's hook leaves it, and a damaged one
        (tmp_path / 'last_checkpoint').write_bytes(content)
        assert checkpoint_to_resume(tmp_path, pytest.fail).name == 'iter_12.pth'
    (tmp_path / 'latest.pth').symlink_to(tmp_path / 'gone.pth')
    assert checkpoint_to_resume(tmp_path, pytest.fail).name == 'iter_12.pth'

    damaged(tmp_path / 'iter_12.pth', source)
    content = torch.load(source, weights_only=False)
    content['state_dict']['layers.0.weight'][0] = torch.nan
    torch.save(content, tmp_path / 'iter_9.pth')
    torch.save({'state_dict': content['state_dict'], 'meta': {}}, tmp_path / 'iter_8.pth')
    warned = []
    assert checkpoint_to_resume(tmp_path, warned.append).name == 'iter_4.pth'
    for name, reason in (
        ('iter_12', 'cut short or damaged'),
        ('iter_9', 'not finite'),
        ('iter_8', 'has no message_hub, optimizer'),
    ):
        (line,) = (line for line in warned if f'{name}.pth' in line)
        assert reason in line and '\n' not in line

    (tmp_path / 'iter_4.pth').write_bytes(b'')
    with pytest.raises(UserError, match=f'none of the 4 checkpoints in {tmp_path} is good'):
        checkpoint_to_resume(tmp_path, warned.append)


def test_the_tool_resumes_from_the_last_good_one(tool, digits, digits_run, tmp_path):
    shutil.copy(digits_run / 'epoch_1.pth', tmp_path)
    damaged(tmp_path / 'epoch_2.pth', digits_run / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    train = [
        'train', ROOT / 'configs' / 'retinanet_scconv_r18_digits.py', '--data-root', digits, '--work-dir', tmp_path,
    ]  # fmt: skip
    options = ['--cfg-options', *DIGITS]
    status, out, error = tool(*train, '--resume', *options)
    assert status == 0
    assert f'not resumed from: checkpoint cannot be read, it is cut short or damaged: {tmp_path}/epoch_2.pth' in out
    assert f'Load checkpoint from {tmp_path}/epoch_1.pth' in out
    status, _, error = tool(*train, '--resume', tmp_path / 'epoch_2.pth', *options)
    assert status == 2
    assert error.splitlines()[-1].startswith('error: checkpoint cannot be read, it is cut short or damaged')
