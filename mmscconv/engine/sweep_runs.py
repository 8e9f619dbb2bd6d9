"""The runs of a sweep: each a training in a folder of its own, with a state that outlives a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmscconv.complexity import Complexity
from mmscconv.configuration import read_config
from mmscconv.engine.sweep_table import (
    FINISHED,
    Result,
    SweepRow,
    listed,
    read_runs,
    result_of,
    rows_of_others,
    write_tables,
)
from mmscconv.errors import UserError
from mmscconv.storage.checkpoints import LAST
from mmscconv.storage.disk import write_atomically

STATE = 'sweep.json'
LOCK = 'sweep.lock'
RUNS = 'runs.csv'


@dataclass(frozen=True, eq=False)  # a key by its identity: settings is a dict, which has no hash
class SweepRun:
    """One training.

    Args:
        config: Config file.
        seed: Of the run.
        folder: Its work dir.
        settings: ``cfg_options``, ``data_root`` and ``amp``, as ``tools/train.py`` takes them, and ``config``, the
            config's :func:`fingerprint`.
        download: Whether the data may be fetched.
    """

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

    @property
    def key(self) -> tuple[str, int]:
        """Name of the config, and seed: by these ``runs.csv`` tells runs apart."""
        return self.config_name, self.seed

    def state(self) -> dict[str, Any]:
        path = self.folder / STATE
        if not path.is_file():
            return {}
        try:
            return dict(json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(f'{path} is damaged: remove it, and its run is resumed or begins anew') from error

    def save(self, finished: bool) -> None:
        with _writing(self.folder):
            write_atomically(
                self.folder / STATE, json.dumps({**self.settings, 'finished': finished}, indent=2).encode()
            )

    def require_settings(self) -> None:
        """Raise UserError if the run was begun with other settings; files of older versions know fewer of them."""
        differing = self.differing_settings()
        if differing:
            raise UserError(f'{self.folder} was begun with other {", ".join(differing)}: choose another --work-dir')

    def differing_settings(self) -> list[str]:
        """Return the names of the settings of which its state has other values; the data may have moved."""
        state = self.state()
        return [key for key, value in _recorded(self.settings).items() if state.get(key, value) != value]

    def require_config(self) -> None:
        """Raise UserError if the config is not the one that was planned; ``tools/train.py`` reads the file anew."""
        expected = self.settings.get('config')
        if expected and fingerprint(self.config) != expected:
            raise UserError(f'{self.config} was changed since the sweep began: choose another --work-dir for it')

    @property
    def is_finished(self) -> bool:
        """Return whether it has ended with these settings."""
        return bool(self.state().get('finished')) and not self.differing_settings()

    def command(self, tool: Path) -> list[str]:
        settings = self.settings
        command = [sys.executable, str(tool), self.config, '--work-dir', str(self.folder)]
        command += ['--cfg-options', *settings['cfg_options'], f'randomness.seed={self.seed}']
        command += ['--data-root', settings['data_root']] if settings['data_root'] else []
        command += ['--amp'] if settings['amp'] else []
        command += ['--download'] if self.download else []
        # Without a checkpoint, --resume would make train.py ignore the config's load_from.
        return [*command, '--resume'] if (self.folder / LAST).is_file() else command


def fingerprint(config: str) -> str:
    """Return a hash of the config's content with all that it inherits, not of its text.

    Raises:
        UserError: It cannot be read.
    """
    content = read_config(config).to_dict()
    names = json.dumps(content, sort_keys=True, default=lambda value: getattr(value, '__qualname__', str(type(value))))
    return hashlib.sha256(names.encode()).hexdigest()[:16]


@contextmanager
def claimed(planned: SweepRun) -> Iterator[int | None]:
    """Hold the run for this process and give the lock's file descriptor, None if another process holds the run.

    The lock ends with the last process that has the descriptor: a training goes on when its sweep is killed.
    """
    with ExitStack() as stack:
        with _writing(planned.folder):
            planned.folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((planned.folder / LOCK).open('a'))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock: int | None = file.fileno()
            except BlockingIOError:
                lock = None
        yield lock


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # file systems without locks, too
        raise UserError(f'cannot write to {folder}: {error.strerror} (pass --work-dir)') from error


def train(planned: SweepRun, tool: Path, metric: str | None, lock: int) -> str | None:
    """Train unless the run is finished; return the problem in one line, or None.

    Args:
        planned: The run.
        tool: ``tools/train.py``.
        metric: That its log must hold; None for any known one.
        lock: Of :func:`claimed`, which the training holds as well.
    """
    try:  # the plan is older than the lock: another process, or an editor, may have been here since
        planned.require_settings()
        if planned.is_finished:
            return _unmeasured(planned, metric)
        planned.require_config()
    except UserError as error:
        return f'REFUSED: {error}'
    planned.save(finished=False)
    log = planned.folder / 'train.log'
    with log.open('a') as file:
        done = subprocess.run(
            planned.command(tool), stdout=file, stderr=subprocess.STDOUT, check=False, pass_fds=(lock,)
        )
        status = done.returncode
    if status == 0:
        planned.save(finished=True)
        return _unmeasured(planned, metric)
    lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return f'FAILED with status {status}, see {log}: {lines[-1] if lines else "no output"}'


def _unmeasured(planned: SweepRun, wanted: str | None) -> str | None:
    """Return the problem if the last validation lacks the metric, or None; mmdet omits it if nothing was detected."""
    try:
        measured = result_of(planned.folder, wanted)
    except UserError as error:  # another kind of log, or a damaged one
        return f'trained, but not measured: {error}'
    return None if measured else f'trained, but no {wanted or "known metric"} in its last validation'


def known_results(files: Sequence[str], wanted: str | None) -> dict[tuple[str, int], Result]:
    """Return the results of the finished runs in the ``runs.csv`` of earlier sweeps, by config and seed.

    Raises:
        UserError: A file is not such a table, two results differ, or one is of another metric than the ``wanted`` one.
    """
    known: dict[tuple[str, int], Result] = {}
    for file in files:
        for key, result in read_runs(Path(file)).items():
            if wanted and result.metric != wanted:
                raise UserError(f'{file} has {result.metric} of {key[0]} with seed {key[1]}, not --metric {wanted}')
            if known.setdefault(key, result) != result:
                raise UserError(f'--known {" ".join(files)}: two results of {key[0]} with seed {key[1]}')
    return known


def check_known(runs: Sequence[SweepRun], known: Mapping[tuple[str, int], Result], metric: str | None) -> list[str]:
    """Compare known results with the runs whose place they take, and return a line for each config that differs.

    Raises:
        UserError: A run has finished with another result, or a config's results are of two metrics.
    """
    results = {planned: known.get(planned.key) or _finished_result(planned, metric) for planned in runs}
    for planned in runs:
        own = _finished_result(planned, metric) if planned.key in known else None
        if own and own != known[planned.key]:
            theirs = known[planned.key]
            raise UserError(
                f'--known has {_in_words(theirs)} of {planned.name}, which ended with {_in_words(own)} in '
                f'{planned.folder}: leave it out of --known, or choose another --work-dir'
            )
    for config in dict.fromkeys(planned.config for planned in runs):
        _one_metric(config, [result for planned, result in results.items() if planned.config == config and result])
    return _other_settings(runs, known)


def _in_words(result: Result) -> str:
    best = '' if result.best is None else f' best {result.best:g},'
    return f'{result.metric} {result.last:g},{best}'


def _other_settings(runs: Sequence[SweepRun], known: Mapping[tuple[str, int], Result]) -> list[str]:
    """Return lines about known runs that had other settings, or settings that are not recorded."""
    found: dict[str, list[tuple[str, int]]] = {}
    for planned in runs:
        if planned.key not in known:
            continue
        theirs, ours = json.loads(known[planned.key].settings or '{}'), _recorded(planned.settings)
        differing = [key for key in ours if key in theirs and theirs[key] != ours[key]]
        if differing or ours.keys() - theirs.keys():
            what = f'with other {", ".join(differing)}' if differing else 'with settings that are not recorded'
            found.setdefault(what, []).append(planned.key)
    return [f'taken over by --known, {what}: {listed(keys)}' for what, keys in found.items()]


def runs_of_others(folder: Path, runs: Sequence[SweepRun]) -> list[str]:
    """Return a line about the runs in the folder's ``runs.csv`` that are none of ``runs``, if there are any.

    Raises:
        UserError: The file is no such table.
    """
    others = rows_of_others(folder / RUNS, {planned.key for planned in runs})
    names = listed((row['config'], row['seed']) for row in others)
    return [f'{folder / RUNS} keeps runs that this command does not name: {names}'] if names else []


def moved_data(runs: Sequence[SweepRun]) -> list[str]:
    """Return a line for each other folder of data with which some of the runs began."""
    found: dict[str, list[tuple[str, int]]] = {}
    for planned in runs:
        ours = planned.settings.get('data_root')
        theirs = planned.state().get('data_root', ours)
        if theirs != ours:
            found.setdefault(theirs or "the config's", []).append(planned.key)
    return [
        f'begun with another --data-root, {root}, whose files are taken for the same: {listed(keys)}'
        for root, keys in found.items()
    ]


def _one_metric(config: str, results: Sequence[Result]) -> None:
    metrics = sorted({result.metric for result in results})
    if len(metrics) > 1:
        raise UserError(f'{Path(config).stem} has results of {" and ".join(metrics)}: choose one by --metric')


def write_results(
    folder: Path,
    configs: Sequence[tuple[str, float | None, Complexity | None]],
    runs: Sequence[SweepRun],
    known: Mapping[tuple[str, int], Result],
    metric: str | None,
    against: Sequence[str],
) -> None:
    """Write the tables of the configs, from all finished and known runs, and of the runs.

    The list of runs keeps those of other commands as they are; they are in no table.

    Args:
        folder: Of the sweep.
        configs: Config file, the paper's value and the cost of each, in the tables' order.
        runs: All runs.
        known: Results that take the place of runs.
        metric: Of the tables; None for the first known one.
        against: Of :func:`write_tables`.

    Raises:
        UserError: A config's results are of two metrics.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open('a') as file:  # several processes may share the sweep
            fcntl.flock(file, fcntl.LOCK_EX)
            results = {planned: known.get(planned.key) or _finished_result(planned, metric) for planned in runs}
            rows = []
            for config, paper, cost in configs:
                own = {planned.seed: result for planned, result in results.items() if planned.config == config}
                measured = {seed: result for seed, result in own.items() if result}
                _one_metric(config, list(measured.values()))
                stem = Path(config).stem
                theirs = [seed for seed in own if (stem, seed) in known]
                rows.append(SweepRow(stem, len(own), measured, paper, cost, theirs))
            records = [_run_record(planned, result) for planned, result in results.items()]
            others = rows_of_others(folder / RUNS, {planned.key for planned in runs})
            records += [{key: row.get(key) for key in records[0]} for row in others]
            notes = [*_other_settings(runs, known), *runs_of_others(folder, runs)]
            write_tables(folder, rows, against, records, notes)


def _finished_result(planned: SweepRun, metric: str | None) -> Result | None:
    """Return the result of a run that has ended with its settings; None also where :func:`train` names a problem."""
    if not planned.is_finished:
        return None
    try:
        found = result_of(planned.folder, metric)
    except UserError:
        return None
    recorded = _recorded({key: value for key, value in planned.state().items() if key in planned.settings})
    return found and replace(found, settings=json.dumps(recorded))


def _recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that ``runs.csv`` has: all but the folder of the data, which differs between machines."""
    return {key: value for key, value in settings.items() if key != 'data_root'}


def _run_record(planned: SweepRun, result: Result | None) -> dict[str, Any]:
    """Return the run's row of ``runs.csv``."""
    if result or planned.is_finished:
        state = FINISHED
    elif planned.differing_settings():
        state = 'of other settings'
    else:
        state = 'unfinished' if planned.state() else 'not begun'
    measured = asdict(result) if result else dict.fromkeys(field.name for field in fields(Result))
    return {'config': planned.config_name, 'seed': planned.seed, 'state': state, **measured}
