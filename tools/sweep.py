#!/usr/bin/env python
"""Train configs with several seeds, one run after the other, and keep a table of their results.

After an interruption, repeat the same command: finished runs are skipped, unfinished
runs resumed. All configs are trained with the first seed, then with the next, so that
an unfinished sweep compares like with like. The same command, started several times, shares
the runs: each process takes one that no other has. Each run has the folder
<work-dir>/<config>/seed<n>; <work-dir>/table.md and table.csv have the configs,
runs.csv has every run.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.engine.results import METRICS
from mmscconv.errors import UserError, run
from mmscconv.paper.tables import paper_rows

if TYPE_CHECKING:
    from mmscconv.complexity import Complexity
    from mmscconv.engine.sweep_table import Result

TRAIN = Path(__file__).resolve().with_name('train.py')
STATE = 'sweep.json'
LOCK = 'sweep.lock'
SEED = 'randomness.seed'


@dataclass(frozen=True, eq=False)  # a key by itself
class Run:
    """One training: a config with a seed, in its folder."""

    config: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    download: bool = False

    @property
    def config_name(self) -> str:
        return Path(self.config).stem

    @property
    def name(self) -> str:
        return f'{self.config_name} seed {self.seed}'

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
    parser.add_argument(
        '--known',
        nargs='+',
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
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    runs = plan(args)
    paper = paper_values(args)
    known = known_results(args.known)
    costs = count(args.configs)
    failed = []
    for i, one in enumerate(runs, 1):
        print(f'[{i}/{len(runs)}] {one.name}: ', end='', flush=True)
        if (one.config_name, one.seed) in known:
            print('known', flush=True)
            continue
        with claimed(one) as ours:
            if not ours:
                print('another process has it', flush=True)
                continue
            try:
                problem = train(one) or unmeasured(one, args.metric)
            except KeyboardInterrupt as interrupt:
                raise UserError(f'interrupted in {one.name}; the same command goes on from there') from interrupt
        if problem:
            failed.append(one.name)
        print(problem or 'done', flush=True)
        update_tables(args, runs, known, paper, costs)
    update_tables(args, runs, known, paper, costs)
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
    unknown = [name for name in args.against if name not in stems]
    if unknown:
        raise UserError(f'--against {unknown[0]} is none of the configs: {", ".join(stems)}')
    settings = {'cfg_options': args.cfg_options, 'data_root': args.data_root, 'amp': args.amp}
    runs = [
        Run(config, seed, Path(args.work_dir) / stem / f'seed{seed}', settings, args.download)
        for seed in args.seeds
        for config, stem in zip(args.configs, stems, strict=True)
    ]
    for one in runs:
        state = one.state()
        differing = [key for key in settings if state and state[key] != settings[key]]
        if differing:
            raise UserError(f'{one.folder} was begun with other {", ".join(differing)}: choose another --work-dir')
    return runs


@contextmanager
def claimed(one: Run) -> Iterator[bool]:
    """Hold the run for this process, and tell whether no other held it; the end of the process lets it go, too."""
    one.folder.mkdir(parents=True, exist_ok=True)
    with (one.folder / LOCK).open('a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


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
    from mmscconv.engine.sweep_table import result_of

    return None if result_of(one.folder, wanted) else f'trained, but no {wanted or "known metric"} in its log'


def count(configs: Sequence[str]) -> dict[str, Complexity]:
    """Count the configs' models, which also tells whether they can be built; without those that cannot be counted."""
    check_environment()
    from mmscconv.complexity import count_config
    from mmscconv.configuration import read_config

    costs = {}
    for config in configs:
        try:
            costs[config] = count_config(read_config(config))
        except UserError as error:
            print(f'not counted: {error}', file=sys.stderr)
    return costs


def known_results(files: Sequence[str]) -> dict[tuple[str, int], Result]:
    """Return the results of the finished runs in the ``runs.csv`` of earlier sweeps, by config and seed."""
    from mmscconv.engine.sweep_table import read_runs

    known: dict[tuple[str, int], Result] = {}
    for file in files:
        for key, result in read_runs(Path(file)).items():
            if known.setdefault(key, result) != result:
                raise UserError(f'--known {" ".join(files)}: two results of {key[0]} with seed {key[1]}')
    return known


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


def update_tables(
    args: argparse.Namespace,
    runs: Sequence[Run],
    known: Mapping[tuple[str, int], Result],
    paper: Sequence[float | None],
    costs: Mapping[str, Complexity],
) -> None:
    """Write the tables of the configs, from all finished and known runs, and of the runs."""
    from mmscconv.engine.sweep_table import FINISHED, SweepRow, result_of, write_tables

    results = {one: known.get((one.config_name, one.seed)) for one in runs}
    results = {
        one: result or (result_of(one.folder, args.metric) if one.state().get('finished') else None)
        for one, result in results.items()
    }
    rows = []
    for config, value in zip(args.configs, paper, strict=True):
        found = {one.seed: result for one, result in results.items() if one.config == config and result is not None}
        rows.append(SweepRow(Path(config).stem, len(args.seeds), found, value, costs.get(config)))
    records = []
    for one in runs:
        result = results.get(one)
        measured = asdict(result) if result else dict.fromkeys(('metric', 'last', 'best', 'seconds'))
        ended = result or one.state().get('finished')
        state = FINISHED if ended else 'unfinished' if one.state() else 'not begun'
        records.append({'config': one.config_name, 'seed': one.seed, 'state': state, **measured})
    write_tables(Path(args.work_dir), rows, args.against, records)


if __name__ == '__main__':
    sys.exit(run(main))
