"""Ends of the tools before, at and after a run: places that cannot be written, a full disk, other processes."""

import errno
import os

import pytest
from mmengine.runner import Runner

from helpers.paths import ROOT
from helpers.running_tools import DIGITS
from mmscconv.engine import launch
from mmscconv.engine.runner import CheckedRunner

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
