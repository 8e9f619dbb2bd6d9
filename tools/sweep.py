#!/usr/bin/env python
"""Train configs with several seeds, one run after the other, and keep a table of their results.

After an interruption, repeat the same command: finished runs are skipped, unfinished
runs resumed. All configs are trained with the first seed, then with the next, so that
an unfinished sweep compares like with like. The same command, started several times, shares
the runs: each process takes one that no other has. Each run has the folder
<work-dir>/<config>/seed<n>; <work-dir>/table.md and table.csv have the configs,
runs.csv has every run, those of earlier commands in the same folder, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.engine.results import METRICS
from mmscconv.errors import UserError, run
from mmscconv.paper.tables import paper_rows

if TYPE_CHECKING:
    from mmengine.config import Config

    from mmscconv.complexity import Complexity
    from mmscconv.engine.sweep_runs import SweepRun

TRAIN = Path(__file__).resolve().with_name('train.py')
SEED = 'randomness.seed'


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import PassedOptions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='(default: 0)')
    parser.add_argument('--work-dir', default='work_dirs/sweep', help='folder for all runs (default: %(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=PassedOptions, metavar='KEY=VALUE', help='passed to tools/train.py'
    )
    parser.add_argument('--data-root', help='passed to tools/train.py')
    parser.add_argument('--amp', action='store_true', help='passed to tools/train.py')
    parser.add_argument('--download', action='store_true', help='passed to tools/train.py')
    parser.add_argument(
        '--known',
        nargs='+',
        action='extend',
        default=[],
        metavar='CSV',
        help='runs.csv of earlier sweeps, whose finished runs are taken over',
    )
    parser.add_argument('--metric', help=f'metric of the table (default: the first found of {", ".join(METRICS)})')
    parser.add_argument(
        '--against',
        nargs='+',
        default=[],
        metavar='NAME',
        help="configs' names: the table has differences to them by seed",
    )
    parser.add_argument(
        '--paper',
        nargs='+',
        metavar='VALUE',
        help="the paper's value for each config: a number, - for none, or TABLE/METRIC/METHOD such as "
        "2/cifar100_top1/SCConv-R56 to look up in the paper's tables",
    )
    parser.set_defaults(passed=[])
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()
    check_plan(args)
    paper = paper_values(args)
    from mmscconv.configuration import read_config
    from mmscconv.engine.sweep_runs import (
        check_known,
        claimed,
        known_results,
        moved_data,
        runs_of_others,
        train,
        write_results,
    )

    configs = {name: read_config(name, args.cfg_options or {}, args.data_root) for name in args.configs}
    runs = plan(args)
    known = known_results(args.known, args.metric)
    for line in [
        *check_known(runs, known, args.metric),
        *moved_data(runs),
        *runs_of_others(Path(args.work_dir), runs),
    ]:
        print(line, file=sys.stderr)
    costs = count(configs)

    def write_tables() -> None:
        rows = [(config, value, costs.get(config)) for config, value in zip(args.configs, paper, strict=True)]
        write_results(Path(args.work_dir), rows, runs, known, args.metric, args.against)

    failed = []
    for i, planned in enumerate(runs, 1):
        print(f'[{i}/{len(runs)}] {planned.name}: ', end='', flush=True)
        if planned.key in known:
            print('known', flush=True)
            continue
        with claimed(planned) as lock:
            if lock is None:
                print('another process has it', flush=True)
                continue
            try:
                problem = train(planned, TRAIN, args.metric, lock)
            except KeyboardInterrupt as interrupt:
                raise UserError(f'interrupted in {planned.name}; the same command goes on from there') from interrupt
        if problem:
            failed.append(planned.name)
        print(problem or 'done', flush=True)
        write_tables()
    write_tables()
    print(f'table: {args.work_dir}/table.md')
    if failed:
        print(f'failed: {", ".join(failed)}', file=sys.stderr)
        raise SystemExit(1)


def check_plan(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other."""
    stems = [Path(config).stem for config in args.configs]
    for config, stem in zip(args.configs, stems, strict=True):
        if not Path(config).is_file():
            raise UserError(f'config is not there: {config}')
        if stems.count(stem) > 1:
            raise UserError(f'two configs are named {stem}, but their runs share a folder: rename one')
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f'a seed stands twice in --seeds {" ".join(map(str, args.seeds))}')
    if SEED in (args.cfg_options or {}):
        raise UserError(f'{SEED} is set by --seeds, leave it out of --cfg-options')
    unknown = [name for name in args.against if name not in stems]
    if unknown:
        raise UserError(f'--against {unknown[0]} is none of the configs: {", ".join(stems)}')


def plan(args: argparse.Namespace) -> list[SweepRun]:
    """Return all runs, after checking that they agree with the runs already in the work dir."""
    from mmscconv.engine.sweep_runs import SweepRun, fingerprint

    settings = {'cfg_options': args.passed, 'data_root': args.data_root, 'amp': args.amp}
    of_config = {config: {**settings, 'config': fingerprint(config)} for config in args.configs}
    runs = [
        SweepRun(
            config, seed, Path(args.work_dir) / Path(config).stem / f'seed{seed}', of_config[config], args.download
        )
        for seed in args.seeds
        for config in args.configs
    ]
    for planned in runs:
        planned.require_settings()
    return runs


def count(configs: Mapping[str, Config]) -> dict[str, Complexity]:
    """Count the configs' models, which also tells whether they can be built; without those that cannot be counted."""
    from mmscconv.complexity import count_config

    costs = {}
    for name, config in configs.items():
        try:
            costs[name] = count_config(config)
        except UserError as error:
            print(f'not counted: {error}', file=sys.stderr)
    return costs


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


if __name__ == '__main__':
    sys.exit(run(main))
