"""Reading of the logs that runs leave in their work dirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError

METRICS = ('coco/bbox_mAP', 'voc/bbox_mAP', 'accuracy/top1')

Record = dict[str, Any]


@dataclass(frozen=True)
class _Log:
    """The log of one start of a run.

    Args:
        written: Time at which the file was last written.
        records: With the iteration of each.
    """

    written: float
    records: list[tuple[float, Record]]

    @property
    def begin(self) -> float:
        return self.records[0][0] if self.records else inf

    @property
    def end(self) -> float:
        return max((iteration for iteration, _ in self.records if iteration < inf), default=-inf)

    @property
    def seconds(self) -> float:
        """Time that its training took at least."""
        steps = [(step, record) for step, record in self.records if 'loss' in record]
        return sum((step - last) * record.get('time', 0) for (last, _), (step, record) in pairwise(steps))


def read_log(work_dir: str | Path) -> tuple[list[Record], list[Record]]:
    """Return the training and the validation records of a work dir, its resumed runs joined.

    A later log replaces the earlier logs' records from its own first iteration on: all
    records after a new start, none after a clean resume. A resumed run may begin with a
    validation that the earlier run missed, or already did. A log may begin anywhere:
    folders of earlier runs may have been removed.

    A validation that was logged at step 0, as by earlier configs that count iterations, gets the iteration of the
    training record before it.

    Raises:
        UserError: There is no log, or a line is not JSON.
    """
    files = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not files:
        raise UserError(f'no log of a run (*/vis_data/scalars.json) in {work_dir}')
    joined: list[tuple[float, Record]] = []
    for log in _in_order([_Log(file.stat().st_mtime, _with_iteration(file)) for file in files]):
        records = log.records
        joined = [entry for entry in joined if entry[0] < log.begin]
        if records and joined and _is_repeated(joined[-1][1], records[0][1]):
            iteration, _ = joined.pop()
            records = [(iteration, records[0][1]), *records[1:]]
        joined += records
    kept = [*_numbered(joined)]
    return [r for r in kept if 'loss' in r], [r for r in kept if 'loss' not in r]


def _in_order(by_name: Sequence[_Log]) -> Sequence[_Log]:
    """Return the logs from the oldest to the newest.

    Folders are named by the local time, which another time zone or the end of summer time sets back. Files are
    written in the right order, unless a copy has times of its own. Where the two orders differ, the one that tears
    fewer resumed runs apart is right, or else the files' times if the trainings fit between them.
    """
    by_time = sorted(by_name, key=lambda log: log.written)
    original = all(after.written - before.written >= after.seconds / 2 for before, after in pairwise(by_time))
    return min((by_time, by_name) if original else (by_name, by_time), key=_torn)


def _torn(logs: Iterable[_Log]) -> int:
    """Return the number of logs that begin behind a gap which a log after them fills."""
    order = [log for log in logs if log.records]
    reached, torn = -inf, 0
    for place, log in enumerate(order, 1):
        torn += any(reached < other.begin < log.begin for other in order[place:])
        reached = log.end if log.end > -inf else reached
    return torn


def _is_repeated(last: Record, first: Record) -> bool:
    """Return whether a resumed run's first record is of the validation that the run before it ended with."""
    # At step 0 a validation says nothing of its place; no other one can be between the two.
    return 'loss' not in last and 'loss' not in first and last.get('step') in (0, first.get('step'))


def _numbered(entries: Iterable[tuple[float, Record]]) -> Iterator[Record]:
    """Yield the records, those of step 0 with their iteration, or the one before if that is unknown."""
    last = 0
    for iteration, record in entries:
        last = int(iteration) if iteration < inf else last
        yield {**record, 'step': last} if record.get('step') == 0 else record


def _with_iteration(log: Path) -> list[tuple[float, Record]]:
    """Pair each record with its iteration; a validation has that of the training record before it, or else after it.

    A last line that was cut short by a kill or a full disk is left out.
    """
    entries: list[tuple[int | None, Record]] = []
    iteration: int | None = None
    whole_lines, _, _ = log.read_text().rpartition('\n')
    for number, line in enumerate(whole_lines.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f'line {number} of the log is not JSON: {log} ({error})') from error
        if 'loss' in record:
            iteration = record['step']
        entries.append((iteration, record))
    first_iteration = next((i for i, _ in entries if i is not None), float('inf'))
    return [(first_iteration if i is None else i, record) for i, record in entries]


def pick_metric(validation: Sequence[Record], wanted: str | None) -> str | None:
    """Return the metric to show: ``wanted``, or else the first of METRICS that was measured, or None."""
    return wanted or next((m for m in METRICS if any(m in r for r in validation)), None)
