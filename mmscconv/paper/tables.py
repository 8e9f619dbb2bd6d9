"""The paper's printed tables, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

UNITS = {'M': 1e6, 'G': 1e9}


@dataclass(frozen=True)
class PaperRow:
    """One printed row of Tables 1-5; tables.yaml explains the fields."""

    table: int
    method: str
    params: str
    flops: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
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


def printed(number: str) -> float:
    """Return the value of a number in the tables' notation: '843.81M', '1.30G'."""
    return float(number[:-1]) * UNITS[number[-1]]


def paper_rows() -> list[PaperRow]:
    """Read the rows in the paper's order."""
    import yaml

    data = yaml.safe_load((Path(__file__).parent / 'tables.yaml').read_text())
    return [PaperRow(**row) for row in data['rows']]
