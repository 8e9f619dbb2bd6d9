"""The page: one file without scripts and without references to other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = 'page.html.j2'


def render(**contents: Any) -> str:
    """Return the page; everything that comes from the data set or the config is escaped."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters['measured'] = lambda value: 'n/a' if value is None else f'{value:.3f}'
    templates.filters['millions'] = lambda value: f'{value / 1e6:,.2f}'
    return templates.get_template(TEMPLATE).render(**contents)
