"""Real runs of tools/sweep.py: two seeds, one of them killed in its second epoch, then resumed."""

import csv
import fcntl
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.running_tools import run_tool
from mmscconv.complexity import Complexity
from mmscconv.engine.metrics import in_percent
from mmscconv.engine.results import read_log
from mmscconv.engine.sweep_runs import SweepRun, claimed, fingerprint, train
from mmscconv.engine.sweep_table import (
    Difference,
    Result,
    SweepRow,
    difference,
    read_runs,
    result_of,
    write_tables,
)

KILLER = """
import os, pathlib, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KillSeed0(Hook):
    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.epoch == 1 and runner.seed == 0 and pathlib.Path('{flag}').exists():
            os.kill(os.getpid(), signal.SIGKILL)
"""
CONFIG = """
_base_ = '{root}/configs/retinanet_r18_digits.py'
custom_imports = dict(imports=['killer'], allow_failed_imports=False)
custom_hooks = [dict(type='KillSeed0')]
model = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64]),
             test_cfg=dict(score_thr=0.0))
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, **loader)
val_dataloader = loader
train_cfg = dict(val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
auto_scale_lr = dict(base_batch_size=2)
"""


def test_interrupted_sweep_resumes(tool, root, tmp_path, digits, monkeypatch):
    """The trainings of the first sweep are forks, as run_tool's; the second sweep starts its training itself."""

    def forked(command, stdout, **_):
        done = run_tool(Path(command[1]).name, *command[2:], check=False, PYTHONPATH=str(tmp_path))
        stdout.write(done.text)
        return SimpleNamespace(returncode=done.returncode)

    flag = tmp_path / 'kill'
    flag.touch()
    (tmp_path / 'killer.py').write_text(KILLER.format(flag=flag))
    (tmp_path / 'tiny.py').write_text(CONFIG.format(root=root))
    args = ['tiny.py', '--seeds', 0, 1, '--work-dir', 'out', '--data-root', digits, '--paper', 35.2]
    args += ['--cfg-options', 'train_cfg.max_epochs=2']
    folders = [tmp_path / 'out' / 'tiny' / f'seed{seed}' for seed in (0, 1)]

    with monkeypatch.context() as first:
        first.chdir(tmp_path)
        first.syspath_prepend(tmp_path)
        first.setattr(subprocess, 'run', forked)
        status, out, error = tool('sweep', *args)
    assert status == 1, error
    assert 'tiny seed 0: FAILED with status -9' in out and 'tiny seed 1: done' in out
    assert error.strip() == 'failed: tiny seed 0'
    assert '| tiny | 1/2 | coco/bbox_mAP |' in (tmp_path / 'out' / 'table.md').read_text()
    changed = (folders[1] / 'epoch_2.pth').stat().st_mtime_ns

    flag.unlink()
    second = run_tool('sweep.py', *args, cwd=tmp_path, check=False, PYTHONPATH=str(tmp_path))
    assert second.returncode == 0 and second.stderr == '', second.stderr
    assert [r['step'] for r in read_log(folders[0])[1]] == [1, 2]
    newest = sorted(folders[0].glob('*/vis_data/scalars.json'))[-1].read_text().splitlines()
    assert json.loads(newest[0])['epoch'] == 2, 'the run started again instead of resuming'
    assert (folders[1] / 'epoch_2.pth').stat().st_mtime_ns == changed, 'the finished run was run again'
    with (tmp_path / 'out' / 'table.csv').open(newline='') as file:
        (row,) = csv.DictReader(file)
    want = [read_log(folder)[1][-1]['coco/bbox_mAP'] * 100 for folder in folders]
    assert row['seeds'] == '2/2' and float(row['last']) == pytest.approx(sum(want) / 2) and row['paper'] == '35.2'


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['nowhere.py'], 'config is not there: nowhere.py'),
        (['a.py', 'sub/a.py'], 'two configs are named a'),
        (['a.py', '--seeds', '1', '1'], 'a seed stands twice'),
        (['a.py', '--cfg-options', 'randomness.seed=3'], 'randomness.seed is set by --seeds'),
        (['a.py', '--against', 'a', 'plain'], '--against plain is none of the configs: a'),
        (['a.py', '--paper', '1', '2'], '--paper needs one value for each of the 1 configs, got 2'),
        (['a.py', '--paper', 'SCConv'], '--paper takes numbers'),
        (['a.py', '--paper', '5/mAP_50_95/R50'], "not in the paper's tables, where 5/mAP_50_95 has ['ResNet50(R50)'"),
        (['a.py', '--paper', '3/imagenet_top1/SCConv-R50'], 'stands for 2 rows, [76.41, 76.79]'),
    ],
)
def test_user_errors(tool, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sub').mkdir()
    for name in ('a.py', 'sub/a.py'):
        (tmp_path / name).touch()
    status, out, error = tool('sweep', *args)
    assert status == 2 and out == ''
    assert error.startswith('error: ') and message in error and error.count('\n') == 1


def test_other_settings_are_refused(tool, root, tmp_path):
    config = root / 'configs' / 'retinanet_r18_digits.py'
    folder = tmp_path / config.stem / 'seed0'
    folder.mkdir(parents=True)
    (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=['a=1'], data_root=None, amp=False, finished=True)))
    status, _, error = tool('sweep', config, '--work-dir', tmp_path, '--amp')
    assert status == 2 and f'{folder} was begun with other cfg_options, amp: choose another --work-dir' in error


def finished_runs(folder, config, seeds, value=0.5, **settings):
    """Write a config file's runs as a sweep leaves them."""
    (folder / f'{config}.py').write_text('model = dict()')
    for seed in seeds:
        run = work_dir(folder / 'out' / config / f'seed{seed}', 'coco/bbox_mAP', value)
        state = dict(cfg_options=[], data_root=None, amp=False, finished=True) | settings
        (run / 'sweep.json').write_text(json.dumps(state))


def test_runs_that_a_later_command_does_not_name_stay_in_the_list(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: SimpleNamespace(returncode=1))
    finished_runs(tmp_path, 'a', [0, 1, 2])
    finished_runs(tmp_path, 'b', [0], 0.6)
    finished_runs(tmp_path, 'c', [0], 0.7)
    config, out = (lambda name: tmp_path / f'{name}.py'), tmp_path / 'out'
    assert tool('sweep', config('a'), config('b'), '--seeds', 0, 1, '--work-dir', out)[0] == 1
    first = read_runs(out / 'runs.csv')
    assert first.keys() == {('a', 0), ('a', 1), ('b', 0)}
    status, _, error = tool('sweep', config('a'), '--seeds', 2, 1, '--work-dir', out)
    line = f'{out}/runs.csv keeps runs that this command does not name: a, seed 0; b, seed 0, 1'
    assert status == 0 and error.splitlines()[0] == line
    found = read_runs(out / 'runs.csv')
    assert found == first | {('a', 2): Result('coco/bbox_mAP', 50.0, 50.0, None)}
    assert found['b', 0].settings == first['b', 0].settings
    assert (out / 'table.md').read_text().endswith(f'\n\n{line}\n')
    states = {tuple(line.split(',')[:2]): line.split(',')[2] for line in (out / 'runs.csv').read_text().splitlines()}
    assert states['b', '1'] == 'unfinished'
    # Repeated, or with all names, a command changes nothing.
    before = (out / 'runs.csv').read_text()
    assert tool('sweep', config('a'), '--seeds', 2, 1, '--work-dir', out)[0] == 0
    assert (out / 'runs.csv').read_text() == before
    status, _, error = tool('sweep', *map(config, 'abc'), '--seeds', 0, '--work-dir', out)
    assert status == 0 and error.splitlines()[0].endswith(' does not name: a, seed 2, 1; b, seed 1')
    assert len(read_runs(out / 'runs.csv')) == 5


def test_a_list_of_runs_by_an_older_version_is_kept(tool, tmp_path):
    finished_runs(tmp_path, 'a', [0])
    old = tmp_path / 'out' / 'runs.csv'
    old.write_text('config,seed,state,metric,last,best,seconds\nb,3,finished,coco/bbox_mAP,40.0,41.0,0.5\n')
    assert tool('sweep', tmp_path / 'a.py', '--work-dir', tmp_path / 'out')[0] == 0
    assert read_runs(old)['b', 3] == Result('coco/bbox_mAP', 40.0, 41.0, 0.5)


def test_another_list_in_the_place_of_the_runs_is_named_before_the_sweep(tool, tmp_path, monkeypatch):
    finished_runs(tmp_path, 'a', [0])
    other = tmp_path / 'out' / 'runs.csv'
    other.write_text('name,date\nx,1\n')
    status, out, error = tool('sweep', tmp_path / 'a.py', '--work-dir', tmp_path / 'out')
    assert status == 2 and out == '' and error.startswith(f'error: {other} is no runs.csv of tools/sweep.py')
    assert other.read_text() == 'name,date\nx,1\n'


def test_the_data_may_move_while_a_sweep_is_interrupted(tool, tmp_path, monkeypatch):
    finished_runs(tmp_path, 'a', [0], data_root='/old/data')
    config = tmp_path / 'a.py'
    config.write_text("model, data_root = dict(), 'data'")
    trained = trains_at_once(monkeypatch, lambda: None)
    command = 'sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path / 'out', '--data-root', '/new/data'
    status, out, error = tool(*command)
    assert status == 0 and 'seed 0: done' in out and trained == [('a', 'seed1')]
    assert error.splitlines()[0] == (
        'begun with another --data-root, /old/data, whose files are taken for the same: a, seed 0'
    )
    assert len(read_runs(tmp_path / 'out' / 'runs.csv')) == 2
    assert json.loads((tmp_path / 'out' / 'a' / 'seed1' / 'sweep.json').read_text())['data_root'] == '/new/data'


def test_a_config_that_was_changed_is_refused(tool, tmp_path):
    """Its finished runs are another network's."""
    config = tmp_path / 'a.py'
    for depth in (18, 34):
        config.write_text(f'model = dict(depth={depth})')
        state = dict(cfg_options=[], data_root=None, amp=False, finished=True, config=fingerprint(str(config)))
        folder = work_dir(tmp_path / f'runs{depth}' / 'a' / 'seed0', 'coco/bbox_mAP', 0.5)
        (folder / 'sweep.json').write_text(json.dumps(state))
    status, out, _ = tool('sweep', config, '--work-dir', tmp_path / 'runs34')
    assert status == 0 and 'seed 0: done' in out
    status, _, error = tool('sweep', config, '--work-dir', tmp_path / 'runs18')
    assert status == 2 and f'{tmp_path}/runs18/a/seed0 was begun with other config: choose another' in error


def test_a_damaged_state_is_named(tool, tmp_path):
    (tmp_path / 'a.py').write_text('model = dict()')
    folder = work_dir(tmp_path / 'a' / 'seed0', 'coco/bbox_mAP', 0.5)
    (folder / 'sweep.json').write_text('')
    status, _, error = tool('sweep', tmp_path / 'a.py', '--work-dir', tmp_path)
    assert status == 2 and f'{folder}/sweep.json is damaged' in error


def test_a_training_holds_its_run_when_the_sweep_is_gone(tmp_path):
    one = SweepRun('a.py', 0, tmp_path / 'run', {})
    with claimed(one) as lock:
        child = subprocess.Popen(['sleep', '60'], pass_fds=(lock,))
    try:
        with claimed(one) as lock:
            assert lock is None
    finally:
        child.kill()
        child.wait()
    with claimed(one) as lock:
        assert lock is not None


def test_the_training_is_given_the_lock(tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(
        subprocess, 'run', lambda *_, **settings: passed.append(settings['pass_fds']) or SimpleNamespace(returncode=1)
    )
    one = SweepRun('a.py', 0, tmp_path / 'run', dict(cfg_options=[], data_root=None, amp=False))
    with claimed(one) as lock:
        train(one, 'train.py', None, lock)
        assert passed == [(lock,)]


def trains_at_once(monkeypatch, meanwhile):
    """Let each training write a log at once, and ``meanwhile`` happen; return the seeds and configs that it trained."""
    trained = []

    def run(command, **settings):
        folder = Path(command[command.index('--work-dir') + 1])
        trained.append((folder.parent.name, folder.name))
        work_dir(folder, 'coco/bbox_mAP', 0.5)
        meanwhile()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, 'run', run)
    return trained


def test_a_config_that_changes_during_a_sweep_is_not_trained(tool, tmp_path, monkeypatch):
    for name in 'ab':
        (tmp_path / f'{name}.py').write_text('model = dict(depth=18)')
    trained = trains_at_once(monkeypatch, lambda: (tmp_path / 'a.py').write_text('model = dict(depth=34)'))
    command = 'sweep', tmp_path / 'a.py', tmp_path / 'b.py', '--seeds', 0, 1, '--work-dir', tmp_path / 'out'
    status, out, error = tool(*command)
    assert trained == [('a', 'seed0'), ('b', 'seed0'), ('b', 'seed1')]
    assert f'a seed 1: REFUSED: {tmp_path}/a.py was changed since the sweep began' in out
    assert status == 1 and error.endswith('failed: a seed 1\n')
    assert '| a | 1/2 | coco/bbox_mAP | 50.00 |' in (tmp_path / 'out' / 'table.md').read_text()


@pytest.mark.parametrize('finished', [True, False])
def test_a_run_that_another_sweep_began_meanwhile_with_other_settings_is_left_alone(
    finished, tool, tmp_path, monkeypatch
):
    for name in 'abc':
        (tmp_path / f'{name}.py').write_text('model = dict()')
    folder = tmp_path / 'out' / 'b' / 'seed0'

    def other_sweep():
        if not folder.exists():
            work_dir(folder, 'coco/bbox_mAP', 0.9)
            state = dict(cfg_options=[], data_root=None, amp=True, finished=finished)
            (folder / 'sweep.json').write_text(json.dumps(state))

    trained = trains_at_once(monkeypatch, other_sweep)
    status, out, _ = tool('sweep', *(tmp_path / f'{name}.py' for name in 'abc'), '--work-dir', tmp_path / 'out')
    assert status == 1 and trained == [('a', 'seed0'), ('c', 'seed0')]
    assert f'b seed 0: REFUSED: {folder} was begun with other amp: choose another --work-dir' in out
    assert '| b | 0/1 |  |' in (tmp_path / 'out' / 'table.md').read_text()
    states = [line.split(',')[:3] for line in (tmp_path / 'out' / 'runs.csv').read_text().splitlines()[1:]]
    assert states == [['a', '0', 'finished'], ['b', '0', 'of other settings'], ['c', '0', 'finished']]
    assert json.loads((folder / 'sweep.json').read_text())['amp']


def test_keyboard_interrupt(tool, root, tmp_path, monkeypatch):
    commands = []

    def interrupt(command, **kwargs):
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, 'run', interrupt)
    config = root / 'configs' / 'retinanet_r18_digits.py'
    status, _, error = tool('sweep', config, '--work-dir', tmp_path)
    assert status == 2 and 'interrupted in retinanet_r18_digits seed 0; the same command goes on' in error
    assert not json.loads((tmp_path / config.stem / 'seed0' / 'sweep.json').read_text())['finished']
    # Unlike the settings, the permission to fetch data may change between the calls.
    status, _, error = tool('sweep', config, '--work-dir', tmp_path, '--download')
    assert status == 2 and 'interrupted' in error
    assert ['--download' in command for command in commands] == [False, True]


def test_run_without_metric_is_named(tool, root, tmp_path, monkeypatch):
    """A finished run whose log lacks the metric neither stops the sweep nor counts as a success."""
    config = root / 'configs' / 'retinanet_r18_digits.py'
    for seed in (0, 1):
        folder = work_dir(tmp_path / config.stem / f'seed{seed}', 'coco/bbox_mAP', *[0.5] * seed)
        state = dict(cfg_options=[], data_root=None, amp=False, finished=True)
        (folder / 'sweep.json').write_text(json.dumps(state))
    status, out, error = tool('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path)
    assert status == 1 and error == 'failed: retinanet_r18_digits seed 0\n'
    assert 'seed 0: trained, but no known metric in its last validation' in out and 'seed 1: done' in out
    assert '| 1/2 | coco/bbox_mAP | 50.00 | 50.00 |' in (tmp_path / 'table.md').read_text()
    states = [line.split(',')[:3] for line in (tmp_path / 'runs.csv').read_text().splitlines()]
    assert states == [['config', 'seed', 'state'], [config.stem, '0', 'finished'], [config.stem, '1', 'finished']]


def test_runs_of_earlier_sweeps_are_taken_over(tool, root, tmp_path):
    config = root / 'configs' / 'retinanet_r18_digits.py'
    folder = work_dir(tmp_path / config.stem / 'seed1', 'coco/bbox_mAP', 0.6)
    (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=[], data_root=None, amp=False, finished=True)))
    known, head = tmp_path / 'known.csv', 'config,seed,state,metric,last,best,seconds\n'
    known.write_text(f'{head}{config.stem},0,finished,coco/bbox_mAP,50.0,55.0,0.5\n{config.stem},1,unfinished,,,,\n')
    sweep_it = ('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path, '--known')
    status, out, error = tool(*sweep_it, known)
    assert status == 0, error
    assert 'seed 0: known' in out and 'seed 1: done' in out
    assert '| 2/2 | coco/bbox_mAP | 55.00 ± 7.07 | 60.00 |' in (tmp_path / 'table.md').read_text()
    # The written runs.csv is one to go on from.
    assert read_runs(tmp_path / 'runs.csv') == {
        (config.stem, 0): Result('coco/bbox_mAP', 50.0, 55.0, 0.5),
        (config.stem, 1): Result('coco/bbox_mAP', 60.0, 60.0, None),
    }
    other = tmp_path / 'other.csv'
    for text, message in (
        (known.read_text().replace('50.0', '51.0'), f'two results of {config.stem} with seed 0'),
        ('a,b\n1,2\n', 'is no runs.csv of tools/sweep.py'),
        (f'{head}x,0,finished,m,50.0,55.0,\nx,0,finished,m,70.0,75.0,\n', 'x with seed 0 stands twice'),
        (f'{head}x,0,finished,m,nan,55.0,\n', 'has a result that is no number'),
        (f'{head}{config.stem},2,finished,coco/bbox_mAP_50,50.0,55.0,\n', None),
    ):
        other.write_text(text)
        status, _, error = tool(*sweep_it, known, other)
        if message:
            assert status == 2 and message in error and error.count('\n') == 1
    status, _, error = tool(*sweep_it, known, other, '--metric', 'coco/bbox_mAP')
    assert status == 2 and f'{other} has coco/bbox_mAP_50 of {config.stem} with seed 2' in error
    other.write_text(f'{head}{config.stem},0,finished,coco/bbox_mAP_50,80.0,80.0,\n')
    status, _, error = tool('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path, '--known', other)
    assert status == 2 and f'{config.stem} has results of coco/bbox_mAP and coco/bbox_mAP_50: choose one' in error
    status, _, error = tool(*sweep_it, tmp_path / 'nowhere.csv')
    assert status == 2 and 'cannot read' in error


def test_known_runs_of_other_settings_are_named(tool, root, tmp_path):
    """A table may mix schedules only where it says so."""
    config = root / 'configs' / 'retinanet_r18_digits.py'
    for seed, work in ((0, 'first'), (1, 'second')):
        folder = work_dir(tmp_path / work / config.stem / f'seed{seed}', 'coco/bbox_mAP', 0.5)
        options = ['train_cfg.max_epochs=2'] * (work == 'first')
        (folder / 'sweep.json').write_text(
            json.dumps(dict(cfg_options=options, data_root=None, amp=False, finished=True))
        )
    status, _, error = tool(
        'sweep', config, '--work-dir', tmp_path / 'first', '--cfg-options', 'train_cfg.max_epochs=2'
    )
    assert status == 0 and error == ''
    first = tmp_path / 'first' / 'runs.csv'
    assert json.loads(read_runs(first)[config.stem, 0].settings)['cfg_options'] == ['train_cfg.max_epochs=2']
    status, _, error = tool('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path / 'second', '--known', first)
    line = f'taken over by --known, with other cfg_options: {config.stem}, seed 0\n'
    assert status == 0 and error == line
    assert (tmp_path / 'second' / 'table.md').read_text().endswith(f'\n\n{line}')
    # The second sweep's file still tells the runs apart.
    settings = [json.loads(r.settings)['cfg_options'] for r in read_runs(tmp_path / 'second' / 'runs.csv').values()]
    assert settings == [['train_cfg.max_epochs=2'], []]


def test_a_known_result_that_differs_from_the_finished_run_is_refused(tool, root, tmp_path):
    config = root / 'configs' / 'retinanet_r18_digits.py'
    folder = work_dir(tmp_path / config.stem / 'seed0', 'coco/bbox_mAP', 0.6)
    (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=[], data_root=None, amp=False, finished=True)))
    known = tmp_path / 'known.csv'
    known.write_text(
        f'config,seed,state,metric,last,best,seconds\n{config.stem},0,finished,coco/bbox_mAP,50.0,55.0,0.5\n'
    )
    status, _, error = tool('sweep', config, '--work-dir', tmp_path, '--known', known)
    assert (
        status == 2
        and '--known has coco/bbox_mAP 50, best 55, of retinanet_r18_digits seed 0, which ended with' in error
    )


@pytest.mark.parametrize('log', [None, 'no JSON\n'])
def test_a_run_without_a_readable_log_does_not_stop_the_sweep(log, tool, root, tmp_path):
    """Another visualizer than mmengine's default leaves none."""
    config = root / 'configs' / 'retinanet_r18_digits.py'
    for seed in (0, 1):
        folder = work_dir(tmp_path / config.stem / f'seed{seed}', 'coco/bbox_mAP', 0.5)
        (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=[], data_root=None, amp=False, finished=True)))
    broken = next((tmp_path / config.stem / 'seed0').glob('*/vis_data/scalars.json'))
    broken.unlink() if log is None else broken.write_text(log)
    status, out, error = tool('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path)
    assert status == 1 and error == f'failed: {config.stem} seed 0\n'
    assert 'seed 0: trained, but not measured: ' in out and 'seed 1: done' in out
    assert '| 1/2 | coco/bbox_mAP | 50.00 |' in (tmp_path / 'table.md').read_text()


def test_options_add_up_and_change_the_counts(tool, root, tmp_path):
    config = root / 'configs' / 'cifar' / 'scconv_resnet56_cifar10.py'
    options = ['train_cfg.max_epochs=1', 'model.backbone.depth=20']
    folder = work_dir(tmp_path / config.stem / 'seed0', 'accuracy/top1', 50.0)
    (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=options, data_root=None, amp=False, finished=True)))
    status, _, error = tool(
        'sweep', config, '--work-dir', tmp_path, *(word for o in options for word in ('--cfg-options', o))
    )
    assert status == 0, error
    assert '| 0.16 | 24.30 |' in (tmp_path / 'table.md').read_text()
    status, _, error = tool('sweep', config, '--work-dir', tmp_path, '--cfg-options', 'modl.backbone.depth=20')
    assert status == 2 and "--cfg-options sets 'modl'" in error and "did you mean 'model'" in error


def test_a_folder_that_cannot_be_written_is_named(tool, root, tmp_path):
    (tmp_path / 'file').touch()
    config = root / 'configs' / 'retinanet_r18_digits.py'
    status, _, error = tool('sweep', config, '--work-dir', tmp_path / 'file')
    assert status == 2 and f'cannot write to {tmp_path}/file/' in error and 'pass --work-dir' in error


def test_a_run_of_another_process_is_left_to_it(tool, root, tmp_path):
    config = root / 'configs' / 'retinanet_r18_digits.py'
    state = dict(cfg_options=[], data_root=None, amp=False, finished=True)
    for seed in (0, 1):
        folder = work_dir(tmp_path / config.stem / f'seed{seed}', 'coco/bbox_mAP', 0.5)
        (folder / 'sweep.json').write_text(json.dumps(state))
    with (tmp_path / config.stem / 'seed0' / 'sweep.lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, out, error = tool('sweep', config, '--seeds', 0, 1, '--work-dir', tmp_path)
    assert status == 0, error
    assert 'seed 0: another process has it' in out and 'seed 1: done' in out


def work_dir(folder, metric, *values, times=()):
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    records = [{'loss': 1.0, 'step': 1}, *({'loss': 1.0, 'step': 1, 'time': t} for t in times)]
    records += [{metric: v, 'step': i} for i, v in enumerate(values, 1)]
    log.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
    return folder


def test_results_of_a_run(tmp_path):
    top1 = work_dir(tmp_path / 'a', 'accuracy/top1', 50, 72.0, 71.0, times=(0.5, 0.2, 0.3))
    assert result_of(top1, None) == Result('accuracy/top1', 71.0, 72.0, 0.3)
    assert result_of(top1, 'accuracy/top5') is None
    assert result_of(work_dir(tmp_path / 'b', 'coco/bbox_mAP', 0.355), None) == Result(
        'coco/bbox_mAP', 35.5, 35.5, None
    )


def test_a_last_validation_without_the_metric_is_no_result(tmp_path):
    """mmdet leaves AP out if a network detects nothing any more; the validation before is not the last."""
    folder = work_dir(tmp_path / 'a', 'coco/bbox_mAP', 0.4)
    log = next(folder.glob('*/vis_data/scalars.json'))
    log.write_text(log.read_text() + '{"data_time": 0.1, "time": 0.2, "step": 2}\n')
    assert result_of(folder, None) is None
    assert result_of(work_dir(tmp_path / 'b', 'coco/bbox_mAP', 0.4, -1), None) is None
    assert result_of(work_dir(tmp_path / 'c', 'coco/bbox_mAP', -1, 0.4), None).best == 40


@pytest.mark.parametrize(
    ('metric', 'factor', 'better'),
    [
        ('coco/AR@100', 100, max),
        ('voc/mAP', 100, max),
        ('lvis/bbox_AP50', 100, max),
        ('CARS/coco/bbox_mAP_s', 100, max),
        ('voc/recall@100@0.5', 100, max),
        ('crowd_human/mMR', 100, min),
        ('crowd_human/JI', 100, max),
        ('multi-label/mAP', 1, max),
        ('task0_accuracy/top1', 1, max),
        ('accuracy/top1', 1, max),
        ('mIoU', 1, max),
        ('coco_panoptic/PQ_th', 1, max),
        ('CARS/accuracy', 1, None),
        ('single-label/support', 1, None),
        ('SPARSITY', 1, None),
    ],
)
def test_fractions_and_percentages(metric, factor, better, tmp_path):
    assert in_percent(metric, 0.45) == 0.45 * factor
    found = result_of(work_dir(tmp_path, metric, 0.5, 0.25, 0.75, 0.5), metric)
    assert found == Result(metric, 0.5 * factor, better and better(0.25, 0.75) * factor, None)


def test_an_unknown_metric_may_be_negative(tmp_path):
    assert result_of(work_dir(tmp_path, 'motchallenge-metric/MOTA', -0.5), 'motchallenge-metric/MOTA').last == -0.5


def test_tables_name_a_unit_only_for_metrics_that_they_know(tool, tmp_path):
    (tmp_path / 'a.py').write_text('model = dict()')
    for seed, values in enumerate([(0.5, 0.75), (0.25, 0.5)]):
        folder = work_dir(tmp_path / 'a' / f'seed{seed}', 'CARS/accuracy', *values)
        (folder / 'sweep.json').write_text(json.dumps(dict(cfg_options=[], data_root=None, amp=False, finished=True)))
    sweep_it = ('sweep', tmp_path / 'a.py', '--seeds', 0, 1, '--work-dir', tmp_path, '--metric', 'CARS/accuracy')
    assert tool(*sweep_it)[0] == 0
    table = (tmp_path / 'table.md').read_text()
    assert table.startswith('| Config | Seeds | Metric | Last | Best | Paper | Parameters, M |')
    assert '| a | 2/2 | CARS/accuracy | 0.62 ± 0.18 |  |  |' in table
    (tmp_path / 'runs.csv').rename(tmp_path / 'known.csv')
    assert read_runs(tmp_path / 'known.csv')['a', 1] == Result('CARS/accuracy', 0.5, None, None)
    (tmp_path / 'known.csv').write_text((tmp_path / 'known.csv').read_text().replace(',0.5,', ',0.9,'))
    status, _, error = tool(*sweep_it, '--known', tmp_path / 'known.csv')
    assert status == 2 and '--known has CARS/accuracy 0.9, of a seed 1, which ended with CARS/accuracy 0.5,' in error


def test_best_of_several_seeds_is_the_lowest_miss_rate(tmp_path):
    results = {seed: Result('crowd_human/mMR', 45.0, best, None) for seed, best in enumerate((44.0, 41.0))}
    write_tables(tmp_path, [SweepRow('a', 2, results), SweepRow('b', 1, {0: Result('speed', 3.0, None, None)})])
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert lines[2] == '| a | 2/2 | crowd_human/mMR, % | 45.00 ± 0.00 | 41.00 |  |  |  |  |'
    assert lines[3] == '| b | 1/1 | speed | 3.00 |  |  |  |  |  |'


def test_seconds_a_step_are_of_own_runs(tmp_path):
    """Runs taken over may be of another machine."""
    timed = [Result('accuracy/top1', 70.0, 70.0, seconds) for seconds in (0.1, 0.4, 0.6)]
    both = SweepRow('both', 3, dict(enumerate(timed)), known=[0])
    theirs = SweepRow('theirs', 1, {0: timed[0]}, known=[0])
    write_tables(tmp_path, [both, theirs])
    text = (tmp_path / 'table.md').read_text()
    assert [line.split(' | ')[-1] for line in text.splitlines()[2:4]] == ['0.500 |', '0.100 |']
    note = 'seconds a step of runs taken over by --known, maybe of another machine: theirs'
    assert text.endswith(f'\n{note}\n')
    write_tables(tmp_path, [theirs])
    assert note not in (tmp_path / 'table.md').read_text()


def row(name, *last, seeds=3, first=0, **others):
    results = {first + i: Result('accuracy/top1', value, value + 1, 0.25) for i, value in enumerate(last)}
    return SweepRow(name, seeds, results, **others)


def test_difference_is_paired_by_seed():
    plain, ours = row('plain', 70.0, 72.0, 74.0), row('ours', 71.0, 73.5, 74.5)
    found = difference(ours, plain)
    # 1, 1.5, 0.5: mean 1, deviation 0.5; Student's t with two degrees of freedom: 4.303
    assert found.mean == pytest.approx(1) and found.seeds == 3
    assert found.half_width == pytest.approx(4.3027 * 0.5 / 3**0.5, rel=1e-4)
    assert difference(row('x', 75.0, first=2), plain) == Difference(1.0, None, 1)
    assert difference(row('x', 75.0, first=3), plain) is None


def test_tables(tmp_path):
    cost = Complexity(2_500_000, 0, 187_110_000, 0)
    rows = [row('plain', 70.0, 72.0), row('ours', 71.0, 75.0, 76.0, paper=72.56, cost=cost), row('none')]
    runs = [{'config': 'plain', 'seed': 0, 'state': 'finished'}]
    write_tables(tmp_path, rows, ['plain'], runs)
    assert (tmp_path / 'table.md').read_text().splitlines() == [
        '| Config | Seeds | Metric | Last, % | Less plain, points | Best, % | Paper, % | Parameters, M '
        '| Multiply-adds, M | Seconds a step |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
        '| plain | 2/3 | accuracy/top1 | 71.00 ± 1.41 |  | 73.00 |  |  |  | 0.250 |',
        '| ours | 3/3 | accuracy/top1 | 74.00 ± 2.65 | +2.00 ± 12.71 | 77.00 | 72.56 | 2.50 | 187.11 | 0.250 |',
        '| none | 0/3 |  |  |  |  |  |  |  |  |',
    ]
    with (tmp_path / 'table.csv').open(newline='') as file:
        second = list(csv.DictReader(file))[1]
    assert float(second['less plain']) == 2 and second['multiply_adds'] == '187110000'
    assert (tmp_path / 'runs.csv').read_text().splitlines() == ['config,seed,state', 'plain,0,finished']
