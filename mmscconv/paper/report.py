"""Table of our counts beside the paper's, and the list of unexplained rows."""

from __future__ import annotations

from collections.abc import Iterable

from mmscconv.complexity.config_table import COUNT_COLUMNS, counts
from mmscconv.paper.comparison import CountedRow
from mmscconv.paper.tables import PaperRow
from mmscconv.table import Table

PAPER_COLUMNS = (
    'row', 'config', *COUNT_COLUMNS, 'printed params', 'error %', 'printed FLOPs', 'error %', 'status',
)  # fmt: skip


def paper_table(results: Iterable[tuple[PaperRow, CountedRow | None]]) -> Table:
    """Return one line per row of the paper's tables."""
    table = Table(PAPER_COLUMNS)
    for row, ours in results:
        cells = counts(ours.backbone) if ours else ['-'] * len(COUNT_COLUMNS)
        errors = [f'{e:+.2f}' for e in (ours.params_error, ours.flops_error)] if ours else ['-', '-']
        table.rows.append(
            (row.name, row.config or '-', *cells, row.params, errors[0], row.flops, errors[1], row.status)
        )
    return table


def unexplained(rows: Iterable[PaperRow]) -> str:
    """Return a Markdown list of the unexplained rows, each with what is known about it."""
    return ''.join(f'- {row.name}: {row.reason}\n' for row in rows if row.status == 'unexplained')
