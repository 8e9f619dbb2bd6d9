"""The tables of a sweep: configs by their results over seeds, and every run, in Markdown and CSV."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscconv.complexity import Complexity
from mmscconv.engine.metrics import in_percent, kind_of
from mmscconv.engine.results import Record, pick_metric, read_log
from mmscconv.errors import UserError
from mmscconv.storage.disk import replacing
from mmscconv.table import Table

CONFIDENCE = 0.95
FINISHED = 'finished'  # state of a run in runs.csv


@dataclass(frozen=True)
class Result:
    """The measurements of one run.

    Args:
        metric: Name of the metric.
        last, best: Its last and its best validation, in percent if the metric is known; ``best`` is None if not.
        seconds: Median of the logged seconds of a training step; None if the log has none.
        settings: Of the run, as ``runs.csv`` has them: JSON; empty in files of older versions.
    """

    metric: str
    last: float
    best: float | None
    seconds: float | None = field(compare=False)
    settings: str = field(default='', compare=False)


@dataclass(frozen=True)
class SweepRow:
    """One config of a sweep.

    Args:
        config: Its name.
        seeds: Number of seeds that were asked for.
        results: By seed, of the finished and measured runs.
        paper: The paper's value, in percent if the metric is known; None if not given.
        cost: Parameters and operations; None if the model could not be counted.
        known: Seeds of the runs of earlier sweeps, which may have run on another machine.
    """

    config: str
    seeds: int
    results: Mapping[int, Result]
    paper: float | None = None
    cost: Complexity | None = None
    known: Collection[int] = ()

    @property
    def last(self) -> list[float]:
        return [result.last for result in self.results.values()]

    @property
    def metric(self) -> str:
        return next((result.metric for result in self.results.values()), '')


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of one config's last validation less another's with the same seed, in the metric's unit.

    Args:
        mean: Of the differences.
        half_width: Of the 95 % confidence interval around the mean, by Student's t; None for fewer than two seeds.
        seeds: Number of seeds that both configs have.
    """

    mean: float
    half_width: float | None
    seeds: int


def result_of(folder: Path, wanted: str | None) -> Result | None:
    """Read a work dir's log; None if the last validation did not measure the metric.

    mmdet leaves AP out where nothing was detected, and COCO's is -1 where there is nothing to detect.
    """
    training, validation = read_log(folder)
    metric = pick_metric(validation, wanted)
    if metric is None:
        return None
    values = [record.get(metric) for record in validation if metric in record or 'data_time' in record]
    kind = kind_of(metric)
    measured = [value for value in values if value is not None and math.isfinite(value) and not (kind and value < 0)]
    if not measured or values[-1] != measured[-1]:
        return None
    best = in_percent(metric, kind.best(measured)) if kind else None
    return Result(metric, in_percent(metric, measured[-1]), best, _seconds(training))


def _seconds(training: Iterable[Record]) -> float | None:
    times = [record['time'] for record in training if 'time' in record]
    return statistics.median(times) if times else None


def read_runs(file: Path) -> dict[tuple[str, int], Result]:
    """Return the results in a ``runs.csv`` by config and seed; runs without a result are left out.

    Raises:
        UserError: The file is missing or no such table, a result is no number, or a run stands twice.
    """
    results: dict[tuple[str, int], Result] = {}
    try:
        with file.open(newline='') as opened:
            for row in csv.DictReader(opened):
                if row['state'] != FINISHED or not row['metric']:
                    continue
                last, best = float(row['last']), float(row['best']) if row['best'] else None
                key = row['config'], int(row['seed'])
                if not (math.isfinite(last) and math.isfinite(best or 0)) or key in results:
                    raise ValueError(f'{key[0]} with seed {key[1]} stands twice, or has a result that is no number')
                seconds = float(row['seconds']) if row['seconds'] else None
                settings = row.get('settings') or ''
                if not isinstance(json.loads(settings or '{}'), dict):
                    raise ValueError(f'settings of {key[0]} with seed {key[1]} are no JSON object')
                results[key] = Result(row['metric'], last, best, seconds, settings)
            return results
    except OSError as error:
        raise UserError(f'cannot read {file}: {error.strerror}') from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{file} is no runs.csv of tools/sweep.py: {error}') from error


def rows_of_others(file: Path, own: Collection[tuple[str, int]]) -> list[dict[str, str]]:
    """Return the rows of a ``runs.csv`` but for those of the configs and seeds in ``own``; none without the file.

    Raises:
        UserError: The file is no such table.
    """
    if not file.is_file():
        return []
    try:
        with file.open(newline='') as opened:
            return [row for row in csv.DictReader(opened) if (row['config'], int(row['seed'])) not in own]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f'{file} is no runs.csv of tools/sweep.py: {error} (move it away, or choose another --work-dir)'
        ) from error


def listed(runs: Iterable[tuple[str, Any]]) -> str:
    """Return runs in words, the seeds of a config together."""
    seeds: dict[str, list[str]] = {}
    for config, seed in runs:
        seeds.setdefault(config, []).append(str(seed))
    return '; '.join(f'{config}, seed {", ".join(its)}' for config, its in seeds.items())


def difference(row: SweepRow, other: SweepRow) -> Difference | None:
    """Return ``row`` less ``other`` over the seeds that both have measured by the same metric, None without any."""
    pairs = [(row.results[seed], other.results[seed]) for seed in row.results if seed in other.results]
    values = [one.last - two.last for one, two in pairs if one.metric == two.metric]
    if not values:
        return None
    if len(values) == 1:
        return Difference(values[0], None, 1)
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Difference(statistics.fmean(values), quantile * error, len(values))


def write_tables(
    folder: Path,
    rows: Sequence[SweepRow],
    against: Sequence[str] = (),
    runs: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write ``table.csv`` with full precision, ``table.md`` with two digits, and ``runs.csv`` into ``folder``.

    Results are in percent. Where a metric is unknown, ``table.md`` has a unit only beside the names of the known ones.

    Args:
        folder: Of the sweep.
        rows: One for each config.
        against: Names of the configs that the others' differences are taken to.
        runs: Of ``runs.csv``, one for each config and seed, all with the same keys.
        notes: Lines below ``table.md``.
    """
    by_name = {row.config: row for row in rows}
    references = [by_name[name] for name in against]
    _write_csv(folder / 'table.csv', [_config_record(row, references) for row in rows])
    if runs:
        _write_csv(folder / 'runs.csv', runs)
    known = all(kind_of(row.metric) for row in rows if row.metric)
    percent, points = (', %', ', points') if known else ('', '')
    differences = [f'Less {name}{points}' for name in against]
    columns = ['Config', 'Seeds', 'Metric', f'Last{percent}', *differences, f'Best{percent}', f'Paper{percent}']
    table = Table([*columns, 'Parameters, M', 'Multiply-adds, M', 'Seconds a step'])
    table.rows += [_cells(row, references, named_unit=not known) for row in rows]
    notes = [*notes, *_known_seconds(rows)]
    with replacing(folder / 'table.md') as path:
        path.write_text(table.markdown() + ''.join(f'\n{note}\n' for note in notes))


def _known_seconds(rows: Sequence[SweepRow]) -> list[str]:
    """Return a line on the rows whose seconds are of another sweep, beside others of this one."""
    timed = [row for row in rows if _step(row) is not None]
    theirs = [row.config for row in timed if not _own_times(row)]
    if not theirs or len(theirs) == len(timed):
        return []
    return [f'seconds a step of runs taken over by --known, maybe of another machine: {", ".join(theirs)}']


def _write_csv(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with replacing(file) as path, path.open('w', newline='') as opened:
        writer = csv.DictWriter(opened, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _config_record(row: SweepRow, references: Sequence[SweepRow]) -> dict[str, Any]:
    last, kind = row.last, kind_of(row.metric)
    best = [result.best for result in row.results.values() if result.best is not None]
    record = {
        'config': row.config,
        'seeds': f'{len(last)}/{row.seeds}',
        'metric': row.metric,
        'last': statistics.fmean(last) if last else None,
        'std': statistics.stdev(last) if len(last) > 1 else None,
        'best': kind.best(best) if kind and best else None,
        'paper': row.paper,
        'params': row.cost.params if row.cost else None,
        'multiply_adds': row.cost.macs if row.cost else None,
        'seconds': _step(row),
    }
    for other in references:
        found = None if row is other else difference(row, other)
        record[f'less {other.config}'] = found.mean if found else None
        record[f'half width, less {other.config}'] = found.half_width if found else None
    return record


def _cells(row: SweepRow, references: Sequence[SweepRow], named_unit: bool) -> list[str]:
    record = _config_record(row, references)
    cost = [row.cost.params / 1e6, row.cost.macs / 1e6] if row.cost else [None, None]
    return [
        row.config,
        record['seeds'],
        record['metric'] + (', %' if named_unit and kind_of(row.metric) else ''),
        _with_spread(record['last'], record['std']),
        *(_signed(None if row is other else difference(row, other)) for other in references),
        *(_number(value) for value in (record['best'], row.paper, *cost)),
        '' if record['seconds'] is None else f'{record["seconds"]:.3f}',
    ]


def _step(row: SweepRow) -> float | None:
    """Return the seconds of a step: of own runs, or else of those taken over."""
    times = _own_times(row) or [result.seconds for result in row.results.values() if result.seconds is not None]
    return statistics.median(times) if times else None


def _own_times(row: SweepRow) -> list[float]:
    own = [result.seconds for seed, result in row.results.items() if seed not in row.known]
    return [seconds for seconds in own if seconds is not None]


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'


def _with_spread(mean: float | None, spread: float | None) -> str:
    return _number(mean) + ('' if spread is None else f' ± {spread:.2f}')


def _signed(found: Difference | None) -> str:
    if found is None:
        return ''
    return f'{found.mean:+.2f}' + ('' if found.half_width is None else f' ± {found.half_width:.2f}')
