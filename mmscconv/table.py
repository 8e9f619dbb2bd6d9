"""Tables that tools print and write, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field


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
