"""Ends of the tools before, at and after a run: places that cannot be written, a full disk, other processes."""

import errno
import fcntl
import multiprocessing
import os

import pytest
from mmengine.runner import Runner

from helpers.paths import ROOT
from helpers.running_tools import DIGITS
from mmscconv.engine import launch
from mmscconv.engine.runner import CheckedRunner
from mmscconv.errors import UserError
from mmscconv.storage.disk import alone_in

CONFIG = ROOT / 'configs' / 'retinanet_scconv_r18_digits.py'


@pytest.fixture
def started(monkeypatch):
    """A list that gets the names of the runs that begin; they end at once."""
    names = []
    for name in ('train', 'test'):
        monkeypatch.setattr(Runner, name, lambda runner, name=name: names.append(name))
    return names


@pytest.fixture
def checkpoint(tmp_path):
    """A file in a checkpoint's place, for runs that do not begin."""
    path = tmp_path / 'some.pth'
    path.touch()
    return path


PLACES = {
    'train, work dir': ('train', '--work-dir', 'file', 'cannot write to the work dir {}: {} (pass --work-dir)'),
    'test, work dir': ('test', '--work-dir', 'file', 'cannot write to the work dir {}: {} (pass --work-dir)'),
    'test, out': ('test', '--out', 'file/out.pkl', 'cannot write {}: {}'),
}


@pytest.mark.parametrize('case', PLACES)
def test_a_place_that_cannot_be_written_is_named_before_the_run(
    case, started, checkpoint, digits, tool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').write_text('no folder')
    name, flag, place, message = PLACES[case]
    args = [CONFIG, *([checkpoint] if name == 'test' else []), '--data-root', digits, flag, place]
    status, _, error = tool(name, *args)
    assert status == 2 and 'Traceback' not in error
    assert error.splitlines()[-1] == f'error: {message.format("file", os.strerror(errno.EEXIST))}'
    assert not started
    assert (tmp_path / 'file').read_text() == 'no folder'


def test_the_same_runs_begin_where_they_can_write(started, checkpoint, digits, tool, tmp_path):
    places = ['--data-root', digits, '--work-dir', tmp_path / 'run']
    assert tool('train', CONFIG, *places)[0] == 0
    assert started == ['train']


def test_results_are_written_by_the_main_process_alone(started, checkpoint, digits, tool, tmp_path, monkeypatch):
    """The others of dist_test.sh collect results, too."""
    monkeypatch.setattr(launch, 'is_main_process', lambda: False)
    out = tmp_path / 'results' / 'out.pkl'
    out.parent.mkdir()
    out.write_bytes(b'of the main process')
    before = out.stat()
    status, _, error = tool(
        'test', CONFIG, checkpoint, '--data-root', digits, '--work-dir', tmp_path / 'run', '--out', out
    )
    assert status == 0, error
    assert started == ['test']
    assert list(out.parent.iterdir()) == [out]
    assert out.read_bytes() == b'of the main process'
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize('moment', ['from_cfg', 'train'])
def test_a_full_disk_under_the_log_is_one_line(moment, digits, tool, tmp_path, monkeypatch):
    """At the start, as the log is opened, or later."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a log')

    monkeypatch.setattr(CheckedRunner, moment, full)
    run = tmp_path / 'run'
    status, _, error = tool('train', CONFIG, '--data-root', digits, '--work-dir', run, '--cfg-options', *DIGITS)
    assert status == 2 and 'Traceback' not in error
    line = error.splitlines()[-1]
    assert line.startswith(f'error: cannot write {run}: No space left on device (')
    assert line.endswith(f' MiB free in {run}; make room there, then go on with --resume)')


@pytest.mark.parametrize('value', ['1', '0'])
def test_the_traceback_behind_a_line_can_be_asked_for(value, tool, monkeypatch):
    monkeypatch.setenv('MMSCCONV_TRACEBACK', value)
    status, _, error = tool('train', 'nowhere.py')
    assert status == 2
    assert error.splitlines()[-1] == 'error: config is not there: nowhere.py'
    assert ('Traceback (most recent call last)' in error) == (value == '1')


@pytest.fixture
def held(tmp_path):
    """A work dir that another process trains in."""
    folder = tmp_path / 'run'
    folder.mkdir()
    context = multiprocessing.get_context('spawn')
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, ready, done))
    process.start()
    assert ready.wait(60)
    yield folder
    done.set()
    process.join()


def hold(folder, ready, done):
    with alone_in(folder):
        ready.set()
        done.wait(120)


def test_a_second_training_in_one_folder_is_refused(held, started, digits, tool, monkeypatch):
    args = 'train', CONFIG, '--data-root', digits, '--work-dir', held
    status, _, error = tool(*args)
    assert status == 2 and 'Traceback' not in error and not started
    assert error.splitlines()[-1] == f'error: another training writes to {held}: pass --work-dir'
    assert not [path for path in held.iterdir() if path.is_dir() or path.suffix == '.py']  # neither log nor config
    monkeypatch.setattr(launch, 'rank_in', lambda launcher: 1)  # of one training, whose first process holds the folder
    assert tool(*args)[0] == 0 and started == ['train']


def test_a_folder_is_free_after_its_training(started, digits, tool, tmp_path):
    for _ in range(2):
        assert tool('train', CONFIG, '--data-root', digits, '--work-dir', tmp_path / 'run')[0] == 0
    assert started == ['train'] * 2
    assert not [path.name for path in (tmp_path / 'run').iterdir() if path.suffix == '.lock']


def test_a_worker_that_outlives_its_training_does_not_hold_the_folder(tmp_path):
    context = multiprocessing.get_context('fork')
    done = context.Event()
    with alone_in(tmp_path):
        worker = context.Process(target=done.wait, args=(120,))
        worker.start()
        with pytest.raises(UserError, match='another training writes to'):
            in_another_process(tmp_path)
    try:
        in_another_process(tmp_path)
    finally:
        done.set()
        worker.join()


def in_another_process(folder):
    def enter():
        try:
            with alone_in(folder):
                pass
        except UserError as error:
            os.write(write, str(error).encode())

    read, write = os.pipe()
    process = multiprocessing.get_context('fork').Process(target=enter)
    process.start()
    process.join()
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    if message:
        raise UserError(message)


def test_a_file_system_without_locks_stops_no_training(started, digits, tool, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    status, _, error = tool('train', CONFIG, '--data-root', digits, '--work-dir', tmp_path / 'run')
    assert status == 0 and started == ['train'], error


def test_a_folder_made_for_a_training_that_is_refused_is_taken_away(tool, tmp_path):
    run = tmp_path / 'new' / 'run'
    status, _, error = tool('train', CONFIG, '--data-root', tmp_path / 'nowhere', '--work-dir', run)
    assert status == 2 and 'nowhere' in error
    assert not run.parent.exists()


@pytest.mark.parametrize(
    ('launcher', 'missing'), [('pytorch', 'RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT'), ('slurm', 'SLURM_PROCID')]
)
def test_a_launcher_that_has_not_launched_is_one_line(launcher, missing, started, tool, tmp_path, monkeypatch):
    for name in missing.split(', '):
        monkeypatch.delenv(name, raising=False)
    status, _, error = tool('train', CONFIG, '--launcher', launcher, '--work-dir', tmp_path / 'run')
    assert status == 2 and 'Traceback' not in error and not started
    line = error.splitlines()[-1]
    assert line.startswith(f'error: --launcher {launcher} needs {missing} in the environment: ')
    assert ('tools/dist_train.sh' if launcher == 'pytorch' else 'tools/slurm_train.sh') in line


@pytest.mark.parametrize(('resume', 'told'), [(False, True), (True, False)])
def test_a_resumed_training_is_not_told_to_scale_its_lr(resume, told, started, digits, digits_run, tool, tmp_path):
    """The flag would have no effect."""
    args = ['--resume', digits_run / 'epoch_1.pth'] if resume else []
    status, out, error = tool(
        'train', CONFIG, '--data-root', digits, '--work-dir', tmp_path / 'run', *args, '--cfg-options', *DIGITS,
        'train_dataloader.batch_size=4',
    )  # fmt: skip
    assert status == 0, error
    assert ('pass --auto-scale-lr' in out + error) == told
