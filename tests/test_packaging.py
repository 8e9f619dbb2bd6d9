"""The built wheel works away from the checkout; a broken stack is told apart and mended by a named command."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from helpers.annotated import made_objects, write_coco
from helpers.paths import ROOT
from helpers.running_tools import MMCV, MMENGINE
from mmscconv.checks import environment
from mmscconv.errors import UserError

IGNORED = shutil.ignore_patterns(
    '.git', '.venv*', '_build', 'build', 'dist', '*.egg-info', '__pycache__', 'work_dirs', '.*_cache'
)


def build_wheel(source, folder):
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob('mmscconv-*.whl')
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A copy of the source, in which no earlier build has left files."""
    folder = tmp_path_factory.mktemp('source') / 'mmscconv'
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    return folder


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
    ours = {ROOT / 'model-index.yml', *(p for f in ('configs', 'tools') for p in (ROOT / f).rglob('*.*'))}
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
    done = subprocess.run(
        [sys.executable, shipped / 'tools' / 'train.py', shipped / 'configs' / 'retinanet_scconv_r50_coco.py'],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)},
    )  # fmt: skip
    # Everything up to the data is in order: the config, its bases and the custom import.
    assert done.stderr.strip().splitlines()[-1].startswith('error: data folder for train is not there: data/coco')
    code = (
        'import mmscconv.models, mmscconv.paper.tables\n'
        'from mmscconv.shipped import configs_folder\n'
        'assert all((configs_folder() / row.config).is_file() for row in mmscconv.paper.paper_rows() if row.config)\n'
        'assert ".mim" in mmscconv.get_config("retinanet_scconv_r50_coco").filename\n'
        'print(mmscconv.__file__)'
    )
    where = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)}, check=True,
    )  # fmt: skip
    assert str(installed) in where.stdout


def test_own_dataset_and_report_work_installed(installed, tmp_path):
    """The config that is written inherits the wheel's, and the page's template is in the wheel."""
    write_coco(tmp_path / 'cells', made_objects(4), {'train': ['img_00', 'img_01'], 'val': ['img_02', 'img_03']})
    tools = installed / 'mmscconv' / '.mim' / 'tools'
    env = {**os.environ, 'PYTHONPATH': str(installed), 'OMP_NUM_THREADS': '1'}
    config = 'own_datasets/cells_r18/cells_r18.py'
    short = ['train_cfg.max_epochs=1', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']
    for command in (
        ['own_dataset.py', 'cells', '--baseline'],
        ['train.py', config, '--cfg-options', *short],
        ['report.py', 'work_dirs/cells_r18'],
    ):
        done = subprocess.run(
            [sys.executable, tools / command[0], *command[1:]], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert (tmp_path / 'work_dirs' / 'cells_r18' / 'report.html').is_file()
    where = subprocess.run(
        [sys.executable, '-c', f'from mmengine import Config; print(Config.fromfile({config!r}).model.backbone.type)'],
        capture_output=True, text=True, cwd=tmp_path, env=env, check=True,
    )  # fmt: skip
    assert where.stdout.splitlines()[-1] == 'ResNet'  # mmdet greets on stdout


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
