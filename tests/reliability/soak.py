#!/usr/bin/env python
"""Train the demo for a given time, as tools/train.py does, and report how its memory grew."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a checkout that is not installed

from mmscconv.engine.results import read_log

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
WINDOW = 300  # seconds
PAGE = os.sysconf('SC_PAGE_SIZE')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=60, help='of training (default: %(default)s)')
    parser.add_argument('--warm-up', type=float, default=5, help='minutes that do not count (default: %(default)s)')
    parser.add_argument('--every', type=float, default=5, help='seconds between two samples (default: %(default)s)')
    parser.add_argument('--config', default=str(ROOT / 'configs' / 'retinanet_scconv_r18_digits.py'))
    parser.add_argument('--work-dir', help='keep the run and rss.csv there (default: a folder that is deleted)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work_dir = Path(args.work_dir or scratch)
        data = Path(scratch) / 'digits'
        subprocess.run([sys.executable, str(ROOT / 'tools' / 'make_digits.py'), '--out', str(data)], check=True)
        command = [sys.executable, str(ROOT / 'tools' / 'train.py'), args.config, '--data-root', str(data)]
        command += ['--work-dir', str(work_dir / 'run'), '--cfg-options', 'train_cfg.max_epochs=1000000']
        with (Path(scratch) / 'log.txt').open('w+') as log:
            training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                samples = sample(training, args.minutes * 60, args.every)
            finally:
                os.killpg(training.pid, signal.SIGKILL)
                status = training.wait()
            if status != -signal.SIGKILL:
                log.seek(0)
                sys.exit(f'the training ended by itself with status {status}:\n{log.read()[-2000:]}')
        if args.work_dir:
            names = 'seconds,tree_bytes,main_bytes'
            np.savetxt(work_dir / 'rss.csv', samples, fmt='%.1f,%.0f,%.0f', header=names, comments='')
        report(samples, args.warm_up * 60, read_log(work_dir / 'run'))


def sample(training: subprocess.Popen, seconds: float, every: float) -> np.ndarray:
    """Return rows of (seconds since the start, RSS of the process tree, RSS of the main process) in bytes."""
    rows, start = [], time.monotonic()
    while (now := time.monotonic() - start) < seconds and training.poll() is None:
        tree = process_tree(training.pid)
        rows.append((now, sum(map(rss, tree)), rss(training.pid)))
        time.sleep(every)
    return np.array(rows)


def process_tree(pid: int) -> list[int]:
    """Return ``pid`` and its descendants; those that end meanwhile are left out."""
    tree = [pid]
    try:
        for children in Path(f'/proc/{pid}/task').glob('*/children'):
            for child in children.read_text().split():
                tree += process_tree(int(child))
    except OSError:
        pass
    return tree


def rss(pid: int) -> int:
    """Return the resident set of one process in bytes, 0 once it has ended."""
    try:
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE
    except OSError:
        return 0


def report(samples: np.ndarray, warm_up: float, log: tuple[list[dict], list[dict]]) -> None:
    training, validation = log
    kept = samples[samples[:, 0] >= warm_up]
    if len(kept) == 0 or kept[-1, 0] - kept[0, 0] < 4 * WINDOW:
        sys.exit(f'a line needs {4 * WINDOW / 60:g} minutes after the warm-up')
    hours = kept[:, 0] / 3600
    print(f'{kept[-1, 0] / 60:.1f} minutes, {training[-1]["step"]} iterations, {len(validation)} validations')
    print(f'{len(kept)} samples after a warm-up of {warm_up / 60:g} minutes; slopes with their standard error')
    for name, values in (
        ('process tree', kept[:, 1] / MIB),
        ('main process', kept[:, 2] / MIB),
        ('workers', (kept[:, 1] - kept[:, 2]) / MIB),
    ):
        # Training, validating and saving take turns, each with its own need: what stays is seen where RSS is least.
        windows = (kept[:, 0] // WINDOW).astype(int)
        floor = np.array([values[windows == window].min() for window in np.unique(windows)])
        print(
            f'RSS of the {name}: min {values.min():.1f}, mean {values.mean():.1f}, max {values.max():.1f} MiB; '
            f'slope {line(hours, values)}, of the least in each {WINDOW // 60} minutes '
            f'{line(np.unique(windows) * WINDOW / 3600, floor)} MiB/hour'
        )


def line(hours: np.ndarray, values: np.ndarray) -> str:
    """Return the slope of the fitted line with its standard error."""
    (slope, _), covariance = np.polyfit(hours, values, 1, cov=True)
    return f'{slope:+.2f} ± {covariance[0, 0] ** 0.5:.2f}'


if __name__ == '__main__':
    main()
