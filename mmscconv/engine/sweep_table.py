"""The table of a sweep: the results of several seeds as one row, in Markdown and CSV."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmscconv.engine.results import pick_metric, read_log
from mmscconv.storage.disk import replacing
from mmscconv.table import Table


@dataclass(frozen=True)
class SweepRow:
    """One config's results over seeds, in percent.

    Args:
        config: Name of the config.
        seeds: Number of finished, measured seeds of all seeds, such as '2/3'.
        metric: Name of the metric; empty if no run has finished.
        last: Mean over seeds of the last validation.
        std: Sample standard deviation of the last validations; None for fewer than two seeds.
        best: The best validation of any seed.
        paper: The paper's value, None if not given.
    """

    config: str
    seeds: str
    metric: str = ''
    last: float | None = None
    std: float | None = None
    best: float | None = None
    paper: float | None = None


def summarize(config: str, finished: Sequence[Path], seeds: int, wanted: str | None, paper: float | None) -> SweepRow:
    """Summarize the finished work dirs of a config; work dirs without the metric do not count."""
    metric, last, best = wanted, [], []
    for folder in finished:
        validation = read_log(folder)[1]
        metric = pick_metric(validation, metric)
        values = [in_percent(metric, record[metric]) for record in validation if metric in record]
        if values:
            last.append(values[-1])
            best.append(max(values))
    row = SweepRow(config, f'{len(last)}/{seeds}', paper=paper)
    if metric is None or not last:
        return row
    std = statistics.stdev(last) if len(last) > 1 else None
    return replace(row, metric=metric, last=statistics.fmean(last), std=std, best=max(best))


def in_percent(metric: str, value: float) -> float:
    """Return the value in percent: mmdet's average precision is a fraction, mmpretrain's accuracy a percentage."""
    return value * 100 if 'AP' in metric else value


def write_table(folder: Path, rows: Sequence[SweepRow]) -> None:
    """Write ``table.csv`` with full precision and ``table.md`` with two digits into ``folder``."""
    records = [asdict(row) for row in rows]
    with replacing(folder / 'table.csv') as path, path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    table = Table(('Config', 'Seeds', 'Metric', 'Last, %', 'Best, %', 'Paper, %'))
    for row in rows:
        last = _number(row.last) + (f' ± {row.std:.2f}' if row.std is not None else '')
        table.rows.append((row.config, row.seeds, row.metric, last, _number(row.best), _number(row.paper)))
    with replacing(folder / 'table.md') as path:
        path.write_text(table.markdown())


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.2f}'
