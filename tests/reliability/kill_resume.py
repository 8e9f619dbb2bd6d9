#!/usr/bin/env python
"""Kill trainings of the demo with SIGKILL at random moments, resume them, and compare with one that was not killed."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a checkout that is not installed

import torch

ROOT = Path(__file__).resolve().parents[2]
TIMES = {'time', 'data_time', 'memory', 'timestamp', 'eta'}
# Augmentation in two workers; boxes to validate from the start; in the log the loss of each iteration, not a mean.
COMMON = """
_base_ = '{demo}'
train_dataloader = dict(batch_size=4, num_workers=2, {sampler} dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(96, 96), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]))
model = dict(test_cfg=dict(score_thr=0.0))
log_processor = dict(window_size=1, by_epoch={by_epoch})
default_hooks = dict(
    logger=dict(interval=1, log_metric_by_epoch={by_epoch}),
    checkpoint=dict({checkpoint}),
    ema=dict(type='EMAHook', momentum=0.1),
)
train_cfg = dict(_delete_=True, {loop})
"""
LOOPS = {
    'iterations': dict(
        sampler="sampler=dict(_delete_=True, type='InfiniteSampler'),",
        checkpoint='by_epoch=False, interval=4',
        by_epoch=False,
        loop="type='IterBasedTrainLoop', max_iters=40, val_interval=8",
    ),
    'epochs': dict(
        sampler='',
        by_epoch=True,
        checkpoint='interval=1',
        loop="type='EpochBasedTrainLoop', max_epochs=8, val_interval=2",
    ),
}
FINAL = {'iterations': 'iter_40.pth', 'epochs': 'epoch_8.pth'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', required=True, help='folder for data and runs, which are kept')
    parser.add_argument('--kills', type=int, default=10, help='of each loop (default: %(default)s)')
    parser.add_argument('--loops', nargs='+', choices=LOOPS, default=[*LOOPS], help='(default: both)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments of the kills (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    folder, rng = Path(args.work_dir).resolve(), random.Random(args.seed)
    data = folder / 'digits'
    make = [sys.executable, str(ROOT / 'tools' / 'make_digits.py'), '--out', str(data), '--train', '20', '--val', '8']
    subprocess.run(make, check=True)
    print('| loop | kill | killed | left half-written | resumed at | losses | validations | weights, optimizer |')
    print('|---|---|---|---|---|---|---|---|', flush=True)
    differences = 0
    for name in args.loops:
        config = folder / f'{name}.py'
        demo = ROOT / 'configs' / 'retinanet_scconv_r18_digits.py'
        config.write_text(COMMON.format(demo=demo, **LOOPS[name]))
        whole = folder / name / 'whole'
        finish(start(config, data, whole))
        want = records(whole)
        for kill in range(1, args.kills + 1):
            run = folder / name / f'kill{kill}'
            # Every other kill waits until a checkpoint is being written.
            moment, part = kill_somewhere(start(config, data, run), run, rng, len(want), writing=kill % 2 == 0)
            finish(start(config, data, run, '--resume'))
            losses, validations = compare_logs(want, records(run))
            final = equal(load(whole / FINAL[name]), load(run / FINAL[name]))
            differences += not (losses and validations and final)
            cells = [name, str(kill), moment, part or 'nothing', resumed_at(run)]
            cells += ['equal' if same else '**differ**' for same in (losses, validations, final)]
            print(f'| {" | ".join(map(str, cells))} |', flush=True)
    if differences:
        sys.exit(f'{differences} trainings differ')


def start(config: Path, data: Path, work_dir: Path, *flags: str) -> subprocess.Popen:
    """Start tools/train.py in a process group of its own."""
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(config), '--data-root', str(data)]
    with (work_dir / 'output.txt').open('a') as output:
        return subprocess.Popen(
            [*command, '--work-dir', str(work_dir), *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(training: subprocess.Popen) -> None:
    if training.wait():
        sys.exit(f'{" ".join(training.args)} ended with status {training.returncode}')


def kill_somewhere(
    training: subprocess.Popen, work_dir: Path, rng: random.Random, length: int, writing: bool
) -> tuple[str, str]:
    """Kill the process group at a random moment. Return when that was and what it left half-written."""
    wanted = rng.randrange(1, length)
    _wait(training, lambda: len(records(work_dir)) >= wanted, 0.01)
    if writing:
        _wait(training, lambda: any(work_dir.glob('*.part')), 0)
    else:
        time.sleep(rng.uniform(0, 0.5))
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    lines = records(work_dir)
    done = [r['step'] for r in lines if 'loss' in r]
    return f'after iteration {done[-1]}', ', '.join(path.name for path in work_dir.glob('*.part'))


def _wait(training: subprocess.Popen, until: Callable[[], bool], seconds: float) -> None:
    while training.poll() is None and not until():
        time.sleep(seconds)


def records(work_dir: Path) -> list[dict[str, Any]]:
    """Return all that was logged, in the order of the runs; a line that a kill cut short is left out."""
    found = []
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def compare_logs(want: list[dict], have: list[dict]) -> tuple[bool, bool]:
    """Return for losses and for validations whether all are there and equal, those of repeated iterations too."""
    results = []
    for is_training in (True, False):
        expected = {r['step']: _values(r) for r in want if ('loss' in r) == is_training}
        found = [(r['step'], _values(r)) for r in have if ('loss' in r) == is_training]
        complete = {step for step, _ in found} == set(expected)
        results.append(complete and all(expected[step] == values for step, values in found))
    return results[0], results[1]


def _values(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def resumed_at(work_dir: Path) -> str:
    lines = [line for line in (work_dir / 'output.txt').read_text().splitlines() if 'resumed epoch: ' in line]
    return lines[-1].partition('resumed epoch: ')[2].partition('iter: ')[2] if lines else 'the start'


def load(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location='cpu', weights_only=False)
    return {key: content[key] for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}


def equal(a: Any, b: Any) -> bool:
    """Return True if two nested states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, type(a)) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


if __name__ == '__main__':
    main()
