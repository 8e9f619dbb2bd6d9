"""The rooms of the package: imports go one way, as docs/architecture.md draws it; and its words.

A room imports rooms before it in ROOMS and itself.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mmscconv
from helpers.paths import ROOT

PACKAGE = Path(mmscconv.__file__).parent

ROOMS = (
    'equations',
    'identities',
    'ops',
    'layers',
    'legacy',
    'replace',
    'errors',
    'foreign_errors',
    'table',
    'storage',
    'checks',
    'doctor',
    'configuration',
    'shipped',
    'complexity',
    'paper',
    'datasets',
    'hooks',
    'optim',
    'models',
    'engine',
    'export',
    'benchmark',
    'own_data',
    'report',
)


def room_of(module: str) -> str:
    """Return the part behind ``mmscconv.``; '' for the package itself."""
    return module.partition('.')[2].partition('.')[0]


def imported(file: Path) -> set[str]:
    """Return the rooms that ``file`` imports, also inside of functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names if alias.name.startswith('mmscconv.')}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'mmscconv':
            found |= {room_of(node.module)} - {''} or {alias.name for alias in node.names}
    return found & set(ROOMS)


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob('*.py')) or [PACKAGE / f'{room}.py']


def test_every_room_is_in_the_list():
    there = {p.stem for p in PACKAGE.iterdir() if p.suffix == '.py' or (p / '__init__.py').exists()}
    assert there - {'__init__', 'configs', '.mim'} == set(ROOMS)


@pytest.mark.parametrize('room', ROOMS)
def test_imports_go_one_way(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = {str(f.relative_to(PACKAGE)): sorted(imported(f) & later) for f in files_of(room)}
    assert not {file: rooms for file, rooms in wrong.items() if rooms}


def test_no_docstring_or_comment_opens_with_a_question_word():
    """Plain words: a docstring starts with the thing or with a verb."""
    opening = re.compile(r'("""|# )(What|Which|How|Whether)\b')
    files = [f for folder in (PACKAGE, ROOT / 'tools', ROOT / 'configs', ROOT / 'tests') for f in folder.rglob('*.py')]
    found = [f'{f.name}: {line.strip()}' for f in files for line in f.read_text().splitlines() if opening.search(line)]
    assert not [line for line in found if not line.startswith('test_rooms.py')]
