#!/usr/bin/env python
"""Train configs with several seeds, one run after the other, and keep a table of their results.

After an interruption, repeat the same command: finished runs are skipped, unfinished
runs resumed. Each run has the folder <work-dir>/<config>/seed<n>; the table is
<work-dir>/table.md and table.csv.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.engine.results import METRICS, pick_metric, read_log
from mmscconv.engine.sweep_table import summarize, write_table
from mmscconv.errors import UserError, run
from mmscconv.paper.tables import paper_rows

TRAIN = Path(__file__).resolve().with_name('train.py')
STATE = 'sweep.json'
SEED = 'randomness.seed'


@dataclass(frozen=True)
class Run:
    """One training: a config with a seed, in its folder."""

    config: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    download: bool = False

    @property
    def name(self) -> str:
        return f'{Path(self.config).stem} seed {self.seed}'

    def state(self) -> dict[str, Any]:
        path = self.folder / STATE
        return json.loads(path.read_text()) if path.is_file() else {}

    def save(self, finished: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f'{STATE}.new'
        new.write_text(json.dumps({**self.settings, 'finished': finished}, indent=2))
        new.replace(self.folder / STATE)  # never half-written

    def command(self) -> list[str]:
        settings = self.settings
        command = [sys.executable, str(TRAIN), self.config, '--work-dir', str(self.folder)]
        command += ['--cfg-options', *settings['cfg_options'], f'{SEED}={self.seed}']
        command += ['--data-root', settings['data_root']] if settings['data_root'] else []
        command += ['--amp'] if settings['amp'] else []
        command += ['--download'] if self.download else []
        # Without a checkpoint, --resume would make train.py ignore the config's load_from.
        return [*command, '--resume'] if (self.folder / 'last_checkpoint').is_file() else command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='(default: 0)')
    parser.add_argument('--work-dir', default='work_dirs/sweep', help='folder for all runs (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed to tools/train.py')
    parser.add_argument('--data-root', help='passed to tools/train.py')
    parser.add_argument('--amp', action='store_true', help='passed to tools/train.py')
    parser.add_argument('--download', action='store_true', help='passed to tools/train.py')
    parser.add_argument('--metric', help=f'metric of the table (default: the first found of {", ".join(METRICS)})')
    parser.add_argument(
        '--paper',
        nargs='+',
        metavar='VALUE',
        help="the paper's value for each config: a number, - for none, or TABLE/METRIC/METHOD such as "
        "2/cifar100_top1/SCConv-R56 to look up in the paper's tables",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = plan(args)
    paper = paper_values(args)
    failed = []
    for i, one in enumerate(runs, 1):
        print(f'[{i}/{len(runs)}] {one.name}: ', end='', flush=True)
        try:
            problem = train(one) or unmeasured(one, args.metric)
        except KeyboardInterrupt as interrupt:
            raise UserError(f'interrupted in {one.name}; the same command goes on from there') from interrupt
        if problem:
            failed.append(one.name)
        print(problem or 'done', flush=True)
        update_table(args, runs, paper)
    print(f'table: {args.work_dir}/table.md')
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
        raise SystemExit(1)


def plan(args: argparse.Namespace) -> list[Run]:
    """Return all runs, after checking that they agree with the runs already in the work dir."""
    stems = [Path(config).stem for config in args.configs]
    for config, stem in zip(args.configs, stems, strict=True):
        if not Path(config).is_file():
            raise UserError(f'config is not there: {config}')
        if stems.count(stem) > 1:
            raise UserError(f'two configs are named {stem}, but their runs share a folder: rename one')
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f'a seed stands twice in --seeds {" ".join(map(str, args.seeds))}')
    if any(option.split('=')[0] == SEED for option in args.cfg_options):
        raise UserError(f'{SEED} is set by --seeds, leave it out of --cfg-options')
    settings = {'cfg_options': args.cfg_options, 'data_root': args.data_root, 'amp': args.amp}
    runs = [
        Run(config, seed, Path(args.work_dir) / stem / f'seed{seed}', settings, args.download)
        for config, stem in zip(args.configs, stems, strict=True)
        for seed in args.seeds
    ]
    for one in runs:
        state = one.state()
        differing = [key for key in settings if state and state[key] != settings[key]]
        if differing:
            raise UserError(f'{one.folder} was begun with other {", ".join(differing)}: choose another --work-dir')
    return runs


def train(one: Run) -> str | None:
    """Train unless the run is finished; return the problem in one line, or None."""
    if one.state().get('finished'):
        return None
    one.save(finished=False)
    log = one.folder / 'train.log'
    with log.open('a') as file:
        status = subprocess.run(one.command(), stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status == 0:
        one.save(finished=True)
        return None
    lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return f'FAILED with status {status}, see {log}: {lines[-1] if lines else "no output"}'


def unmeasured(one: Run, wanted: str | None) -> str | None:
    """Return the problem if the run's log lacks the metric, or None; mmdet omits it if nothing was detected."""
    validation = read_log(one.folder)[1]
    metric = pick_metric(validation, wanted)
    return None if any(metric in r for r in validation) else f'trained, but no {metric or "known metric"} in its log'


def paper_values(args: argparse.Namespace) -> list[float | None]:
    """Return the paper's value for each config."""
    entries = args.paper or ['-'] * len(args.configs)
    if len(entries) != len(args.configs):
        raise UserError(f'--paper needs one value for each of the {len(args.configs)} configs, got {len(entries)}')
    return [None if entry == '-' else paper_value(entry) for entry in entries]


def paper_value(entry: str) -> float:
    """Return the value of a number, or of TABLE/METRIC/METHOD in the paper's tables."""
    try:
        return float(entry)
    except ValueError:
        parts = entry.split('/', 2)
    if len(parts) != 3:
        raise UserError(f'--paper takes numbers, - or TABLE/METRIC/METHOD, got {entry}')
    table, metric, method = parts
    rows = [r for r in paper_rows() if str(r.table) == table and metric in r.metrics]
    values = [r.metrics[metric] for r in rows if r.method == method]
    if len(values) == 1:
        return values[0]
    if values:
        raise UserError(f'--paper {entry} stands for {len(values)} rows, {values}: give the number')
    raise UserError(
        f"--paper {entry}: not in the paper's tables, where {table}/{metric} has {sorted({r.method for r in rows})}"
    )


def update_table(args: argparse.Namespace, runs: Sequence[Run], paper: Sequence[float | None]) -> None:
    """Write the table of all finished runs."""
    rows = []
    for config, value in zip(args.configs, paper, strict=True):
        finished = [r.folder for r in runs if r.config == config and r.state().get('finished')]
        rows.append(summarize(Path(config).stem, finished, len(args.seeds), args.metric, value))
    write_table(Path(args.work_dir), rows)


if __name__ == '__main__':
    sys.exit(run(main))
