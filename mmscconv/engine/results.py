"""Reading of the logs that runs leave in their work dirs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError

METRICS = ('coco/bbox_mAP', 'voc/bbox_mAP', 'accuracy/top1')

Record = dict[str, Any]


def read_log(work_dir: str | Path) -> tuple[list[Record], list[Record]]:
    """Return the training and the validation records of a work dir, its resumed runs joined.

    A later log replaces the earlier logs' records from its own first iteration on: all
    records after a new start, none after a clean resume. A resumed run may begin with a
    validation that the earlier run missed, or already did.

    Raises:
        UserError: There is no log, or a line is not JSON.
    """
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise UserError(f'no log of a run (*/vis_data/scalars.json) in {work_dir}')
    joined: list[tuple[float, Record]] = []
    for log in logs:
        records = _with_iteration(log)
        start = records[0][0] if records else float('inf')
        joined = [entry for entry in joined if entry[0] < start]
        while records and joined and _is_repeated(joined[-1][1], records[0][1]):
            joined.pop()
        joined += records
    kept = [record for _, record in joined]
    return [r for r in kept if 'loss' in r], [r for r in kept if 'loss' not in r]


def _is_repeated(last: Record, first: Record) -> bool:
    """Return whether a resumed run's first record is of the validation that the run before it ended with."""
    return 'loss' not in last and 'loss' not in first and last.get('step') == first.get('step')


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
