"""Parameters and operations of configs as a table."""

from __future__ import annotations

from collections.abc import Iterable

from mmscconv.complexity.counting import Complexity
from mmscconv.table import Table

COUNT_COLUMNS = ('params', 'params without GN', 'conv + linear multiply-adds', "paper's rule")


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
