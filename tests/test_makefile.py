"""make's choice of a Python, with fake ones on PATH; nothing is installed."""

import os
import shutil
import subprocess

import pytest

from helpers.paths import ROOT

SCRIPT = ROOT / '.ci' / 'find-python'


@pytest.fixture
def machine(tmp_path):
    """Return two functions: one puts a fake Python into the only folder of PATH, one runs a command there."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for tool in ('sh', 'tr', 'grep', 'make', 'cat', 'touch', 'env'):
        if shutil.which(tool):
            (folder / tool).symlink_to(shutil.which(tool))

    def add(name, version, venv=True, starts=True):
        text = f"""#!{shutil.which('sh')}
case "$*" in
  *version_info*) {f'echo {version}' if starts else 'exit 127'};;
  *ensurepip*) exit {0 if venv else 1};;
  *venv*) echo "made by {name}"; exit 3;;
esac
"""
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def run(*command, **variables):
        env = {'PATH': str(folder), **variables}
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    return add, run


def test_the_newest_is_taken(machine):
    add, run = machine
    add('python3.10', '3.10'), add('python3.12', '3.12'), add('python3', '3.11')
    assert run(SCRIPT).stdout == 'python3.12\n'


@pytest.mark.parametrize('fault', [{'venv': False}, {'starts': False}], ids=str)
def test_one_that_does_not_work_is_left_out(machine, fault):
    add, run = machine
    add('python3.13', '3.13', **fault), add('python3.11', '3.11')
    assert run(SCRIPT).stdout == 'python3.11\n'


def test_the_official_stack_has_no_numpy_for_3_13(machine):
    add, run = machine
    add('python3.13', '3.13'), add('python3.12', '3.12')
    assert run(SCRIPT).stdout == 'python3.13\n'
    assert run(SCRIPT, STACK='official').stdout == 'python3.12\n'


def test_a_python3_of_a_known_version_is_found(machine):
    add, run = machine
    add('python3', '3.11')
    assert run(SCRIPT).stdout == 'python3\n'


@pytest.mark.parametrize(
    ('pythons', 'arguments', 'message'),
    [
        ({}, (), 'none of Python 3.13 3.12 3.11 3.10 was found: install one, or name it'),
        ({'python3.9': {'version': '3.9'}, 'python3': {'version': '3.14'}}, (), 'none of Python'),
        ({'python3.12': {'version': '3.12', 'venv': False}}, (), 'apt install python3.12-venv'),
        ({}, ('nowhere',), 'PYTHON=nowhere does not run: name one of Python 3.13'),
        ({'old': {'version': '3.9'}}, ('old',), 'PYTHON=old is Python 3.9: name one of'),
        ({'mine': {'version': '3.11', 'venv': False}}, ('mine',), 'PYTHON=mine has no venv'),
    ],
    ids=lambda value: str(value),
)
def test_nothing_fit_is_one_line(machine, pythons, arguments, message):
    add, run = machine
    for name, facts in pythons.items():
        add(name, **facts)
    done = run(SCRIPT, *arguments)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and message in done.stderr


def test_a_named_one_is_taken(machine):
    add, run = machine
    add('python3.13', '3.13'), add('mine', '3.11')
    assert run(SCRIPT, 'mine').stdout == 'mine\n'


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_asks_the_script_and_stops_with_its_line(machine, tmp_path):
    add, run = machine
    for name in ('Makefile', 'setup.py'):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / '.ci', tmp_path / '.ci')
    done = run('make', 'setup')
    assert done.returncode != 0 and 'error: none of Python' in done.stderr
    add('python3.12', '3.12')
    done = run('make', 'setup')
    assert 'made by python3.12' in done.stdout and done.returncode != 0
    add('mine', '3.11')
    assert 'made by mine' in run('make', 'setup', 'PYTHON=mine').stdout


def test_the_script_is_executable():
    assert os.access(SCRIPT, os.X_OK)
