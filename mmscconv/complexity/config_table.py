"""Parameters and operations of configs as a table."""

from __future__ import annotations

from collections.abc import Iterable

from mmscconv.complexity.counting import Complexity
from mmscconv.complexity.detectors import detector_parts, in_head, is_detector
from mmscconv.table import Table

COUNT_COLUMNS = ('params', 'params without GN', 'conv + linear multiply-adds', "paper's rule")


def millions(number: int) -> str:
    """Return a count in millions, to four digits behind the point: '14.6908M'."""
    return f'{number / 1e6:.4f}M'


def counts(complexity: Complexity) -> list[str]:
    """Return the cells of ``COUNT_COLUMNS``."""
    values = (complexity.params, complexity.paper_params, complexity.macs, complexity.paper_ops)
    return [millions(value) for value in values]


def config_table(results: Iterable[tuple[str, tuple[int, int], Complexity]], per_stage: bool) -> Table:
    """Return a row per config, below a detector's one for each part of it, and rows for all stages if asked.

    Args:
        results: Name, (H, W) of the image, and counts of each config.
        per_stage: Add the stages.
    """
    table = Table(('config', *COUNT_COLUMNS, 'image, H x W'))
    for name, (height, width), result in results:
        rows = dict(detector_parts(result)) if is_detector(result) else {}
        if per_stage:  # the stages of a detector's head are in its part alone: torch cannot count them
            rows |= {part: count for part, count in result.stages.items() if not (rows and in_head(part))}
        named = {name: result, **{f'{name}: {part}': complexity for part, complexity in rows.items()}}
        table.rows += [(row, *counts(complexity), f'{height} x {width}') for row, complexity in named.items()]
    return table
