"""The built wheel works away from the checkout; a broken stack is told apart and mended by a named command."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from mmscconv.engine import environment
from mmscconv.engine.errors import UserError


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob('mmscconv-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'site')
    return folder / 'site'


def test_wheel_holds_the_package_and_its_mim_folder(installed):
    assert {p.name for p in installed.iterdir() if not p.name.endswith('.dist-info')} == {'mmscconv'}
    shipped = installed / 'mmscconv' / '.mim'
    for folder in ('configs', 'tools'):
        ours = {p.relative_to(ROOT) for p in (ROOT / folder).rglob('*.*') if '__pycache__' not in p.parts}
        theirs = {p.relative_to(shipped) for p in (shipped / folder).rglob('*.*')}
        assert ours == theirs


def test_config_and_tool_work_installed(installed, tmp_path):
    shipped = installed / 'mmscconv' / '.mim'
    done = subprocess.run(
        [sys.executable, shipped / 'tools' / 'train.py', shipped / 'configs' / 'retinanet_scconv_r50_coco.py'],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)},
    )  # fmt: skip
    # Everything up to the data is in order: the config, its bases and the custom import.
    assert done.stderr.strip().splitlines()[-1].startswith('error: data folder for train is not there: data/coco')
    code = (
        'import mmscconv.models, mmscconv.paper\n'
        'from mmscconv.complexity.paper import CONFIGS\n'
        'assert all((CONFIGS / row.config).is_file() for row in mmscconv.paper.paper_rows() if row.config)\n'
        'assert ".mim" in mmscconv.get_config("retinanet_scconv_r50_coco").filename\n'
        'print(mmscconv.__file__)'
    )
    where = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(installed)}, check=True,
    )  # fmt: skip
    assert str(installed) in where.stdout


def test_environment_is_complete():
    environment.check_environment()


@pytest.mark.parametrize(
    ('missing', 'remedy'),
    [
        ('mmcv.ops', 'pip install --no-cache-dir --no-build-isolation onedl-mmcv'),
        ('mmdet', 'pip install --no-build-isolation onedl-mmengine==0.10.12'),
        ('torchvision', 'pip install --no-build-isolation onedl-mmengine==0.10.12'),
    ],
)
def test_broken_stack_names_the_command(missing, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as error:
        environment.check_environment()
    assert remedy in str(error.value)
    assert missing in str(error.value)
