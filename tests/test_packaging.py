"""The built wheel works away from the checkout; a broken stack is told apart and mended by a named command."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.annotated import made_objects, write_coco, write_voc, write_yolo
from helpers.paths import ROOT
from helpers.running_tools import MMCV, MMENGINE, ONE_WORKER
from helpers.tutorials import blocks
from mmscconv.checks import environment
from mmscconv.errors import UserError

IGNORED = shutil.ignore_patterns(
    '.git', '.venv*', '_build', 'build', 'dist', '*.egg-info', '__pycache__', 'work_dirs', '.*_cache'
)
USERS = ('data', 'own_datasets')


def build_wheel(source, folder):
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob('mmscconv-*.whl')
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the source, in which no earlier build has left files."""
    folder = tmp_path_factory.mktemp('source') / 'mmscconv'
    shutil.copytree(ROOT, folder, ignore=not_source)
    return folder


def not_source(folder, names):
    """Caches and builds, and what a user keeps in the checkout: data sets may have gigabytes."""
    return {*IGNORED(folder, names), *(USERS if Path(folder) == ROOT else ())}


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    with build_wheel(source, tmp_path_factory.mktemp('wheel')) as archive:
        yield archive


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp('site')
    wheel.extractall(folder)
    return folder


def test_wheel_holds_the_package_and_its_mim_folder(installed):
    assert {p.name for p in installed.iterdir() if not p.name.endswith('.dist-info')} == {'mmscconv'}
    shipped = installed / 'mmscconv' / '.mim'
    ours = {ROOT / 'model-index.yml', *(p for f in ('configs', 'tools', 'weights') for p in (ROOT / f).rglob('*.*'))}
    ours = {p.relative_to(ROOT) for p in ours if '__pycache__' not in p.parts}
    assert ours == {p.relative_to(shipped) for p in shipped.rglob('*.*')}
    sources, shipped = (root / 'mmscconv' / 'ops' / 'csrc' for root in (ROOT, installed))
    assert {p.relative_to(sources) for p in sources.rglob('*')} == {p.relative_to(shipped) for p in shipped.rglob('*')}


def test_wheel_of_the_source_distribution_is_the_same(source, wheel, tmp_path):
    code = f'from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})'
    subprocess.run([sys.executable, '-c', code], cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob('mmscconv-*.tar.gz')
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'tests/conftest.py', 'Makefile', 'LICENSE', 'docs/runs.md'} <= names
    with build_wheel(sdist, tmp_path) as again:
        contents = [{name: archive.read(name) for name in archive.namelist()} for archive in (wheel, again)]
    assert contents[0] == contents[1]


def test_config_and_tool_work_installed(installed, tmp_path):
    shipped = installed / 'mmscconv' / '.mim'
    train = str(shipped / 'tools' / 'train.py')
    code = (
        'import runpy, sys\n'
        'import mmscconv.models, mmscconv.paper.tables\n'
        'from mmscconv.shipped import configs_folder\n'
        'assert all((configs_folder() / row.config).is_file() for row in mmscconv.paper.paper_rows() if row.config)\n'
        'assert ".mim" in mmscconv.get_config("retinanet_scconv_r50_coco").filename\n'
        'print(mmscconv.__file__)\n'
        f'sys.argv = [{train!r}, {str(shipped / "configs" / "retinanet_scconv_r50_coco.py")!r}]\n'
        f'runpy.run_path({train!r}, run_name="__main__")'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)},
    )  # fmt: skip
    assert str(installed) in done.stdout, done.stderr
    # Everything up to the data is in order: the config, its bases and the custom import.
    assert done.stderr.strip().splitlines()[-1].startswith('error: data folder for train is not there: data/coco')


@pytest.fixture(scope='module')
def beginner(installed, tmp_path_factory):
    """A folder with the wheel's tools and with data/ as the tutorial has them, of eight tiny images each."""
    folder = tmp_path_factory.mktemp('beginner')
    (folder / 'tools').symlink_to(installed / 'mmscconv' / '.mim' / 'tools')
    objects = made_objects()
    stems = list(objects)
    splits = {'train': stems[:6], 'val': stems[6:]}
    write_voc(folder / 'data' / 'cells_voc', objects, splits)
    write_coco(folder / 'data' / 'cells_coco', objects, splits)
    write_yolo(folder / 'data' / 'cells_yolo', objects, splits)
    return folder


@pytest.fixture
def printed(installed, beginner):
    """Run a command of the tutorial: its standard output."""
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    env = {**os.environ, 'PYTHONPATH': str(installed), 'OMP_NUM_THREADS': '1', 'PATH': path}

    def run(command):
        done = subprocess.run(command, shell=True, cwd=beginner, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    return run


def test_commands_of_the_tutorial_work_installed(beginner, printed):
    """The config that is written inherits the wheel's, and the page's template is in the wheel.

    One layout is enough, and one epoch; tests/own_data has them all.
    """
    (block,) = (block for block in blocks('own_dataset.md', 'bash') if 'own_dataset.py data/cells_coco\n' in block)
    own_dataset, train, report = commands = block.splitlines()
    names = [re.search(r'tools/(\w+)\.py', command).group(1) for command in commands]
    assert names == ['own_dataset', 'train', 'report']
    assert [line.split('#')[0].strip() for line in printed(own_dataset).splitlines()[-2:]] == [train, report]
    options = ' '.join([*ONE_WORKER, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1'])
    printed(f'{train} --cfg-options {options}')
    printed(report)
    assert 'Worst images' in (beginner / report.split()[-1] / 'report.html').read_text()


def test_environment_is_complete():
    environment.check_environment()


@pytest.mark.parametrize(
    ('missing', 'remedy'),
    [
        ('mmcv.ops', f'pip install --no-cache-dir --no-build-isolation {MMCV}'),
        ('mmdet', f'pip install --no-build-isolation {MMENGINE}'),
        ('torchvision', f'pip install --no-build-isolation {MMENGINE}'),
    ],
)
def test_broken_stack_names_the_command(missing, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as error:
        environment.check_environment()
    assert remedy in str(error.value)
    assert missing in str(error.value)
