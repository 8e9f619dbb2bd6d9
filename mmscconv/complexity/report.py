"""Markdown and CSV of counts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mmscconv.complexity.counting import Complexity
from mmscconv.complexity.paper import Comparison
from mmscconv.paper import PaperRow

COUNT_COLUMNS = ('params', 'params without GN', 'conv + linear multiply-adds', "paper's rule")
PAPER_COLUMNS = (
    'row', 'config', *COUNT_COLUMNS, 'printed params', 'error %', 'printed FLOPs', 'error %', 'status',
)  # fmt: skip


@dataclass
class Table:
    """Rows of text under a header."""

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def markdown(self) -> str:
        """Return a Markdown table."""
        lines = [self.columns, ['---'] * len(self.columns), *self.rows]
        return '\n'.join(f'| {" | ".join(cell.replace("|", "/") for cell in line)} |' for line in lines) + '\n'

    def csv(self) -> str:
        """Return CSV."""
        text = io.StringIO()
        csv.writer(text, lineterminator='\n').writerows([self.columns, *self.rows])
        return text.getvalue()


def millions(number: int) -> str:
    """Return a count in millions, to four digits behind the point: '14.6908M'."""
    return f'{number / 1e6:.4f}M'


def counts(complexity: Complexity) -> list[str]:
    """Return the cells of ``COUNT_COLUMNS``."""
    values = (complexity.params, complexity.paper_params, complexity.macs, complexity.paper_ops)
    return [millions(value) for value in values]


def config_table(results: Iterable[tuple[str, Complexity]], per_stage: bool) -> Table:
    """Return one line per config and, if asked, one for each of its parts."""
    table = Table(('config', *COUNT_COLUMNS))
    for name, result in results:
        table.rows.append((name, *counts(result)))
        if per_stage:
            table.rows += [(f'{name}: {stage}', *counts(part)) for stage, part in result.stages.items()]
    return table


def paper_table(results: Iterable[tuple[PaperRow, Comparison | None]]) -> Table:
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
    """Return a Markdown list of the rows that nothing explains, and what is known about each."""
    return ''.join(f'- {row.name}: {row.reason}\n' for row in rows if row.status == 'unexplained')
