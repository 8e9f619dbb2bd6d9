"""The complexity columns of the paper's Tables 1-5, and our counts of the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from mmscconv.complexity.configs import count_config, read_config
from mmscconv.complexity.counting import Complexity

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
UNITS = {'M': 1e6, 'G': 1e9}


@dataclass(frozen=True)
class PaperRow:
    """One printed row; paper_tables.yaml explains the fields."""

    table: int
    method: str
    params: str
    flops: str
    status: str
    reason: str = ''
    settings: str = ''
    config: str = ''
    classes: int | None = None
    params_config: str = ''
    group_norm: bool = False
    flops_rule: str = 'paper'

    @property
    def name(self) -> str:
        """Table, method and settings in one line."""
        return f'Table {self.table}: {self.method}' + (f' ({self.settings})' if self.settings else '')


@dataclass(frozen=True)
class Comparison:
    """A printed row beside the network of ``config`` here: ``params`` and ``flops`` by the row's own rule."""

    row: PaperRow
    backbone: Complexity
    params: int
    flops: int

    @property
    def params_error(self) -> float:
        """Ours against the printed parameters, in percent."""
        return error(self.params, self.row.params)

    @property
    def flops_error(self) -> float:
        """Ours against the printed FLOPs, in percent."""
        return error(self.flops, self.row.flops)


def printed(number: str) -> float:
    """Return the value of a number as the tables print it: '843.81M', '1.30G'."""
    return float(number[:-1]) * UNITS[number[-1]]


def error(ours: int, number: str) -> float:
    """Return by how many percent ``ours`` exceeds a printed number."""
    return 100 * (ours / printed(number) - 1)


def paper_rows() -> list[PaperRow]:
    """Read the rows in the paper's order."""
    data = yaml.safe_load((Path(__file__).parent / 'paper_tables.yaml').read_text())
    return [PaperRow(**row) for row in data['rows']]


@cache
def _count(config: str, classes: int | None) -> Complexity:
    return count_config(read_config(CONFIGS / config), classes)


def compare(row: PaperRow) -> Comparison | None:
    """Count the network of ``row``; None where there is none. A config is counted once per process."""
    if not row.config:
        return None
    network = _count(row.config, row.classes)
    source = _count(row.params_config, None) if row.params_config else network
    return Comparison(
        row=row,
        backbone=network,
        params=source.params if row.group_norm else source.paper_params,
        flops=network.macs if row.flops_rule == 'conv' else network.paper_ops,
    )
