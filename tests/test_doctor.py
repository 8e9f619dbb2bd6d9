"""The doctor tells each fault apart, names the command that mends it, and never falls over what is broken."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.running_tools import MMCV
from mmscconv import doctor, get_config
from mmscconv.checks import environment


def run_doctor(*command, cwd=ROOT, path=()):
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (*path, ROOT)))}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture
def pip_knows(monkeypatch):
    """Pretend that pip has installed these distributions and no others."""
    # Whoever asks for its own version while it is imported would stay half imported.
    for name in ('torchvision', 'mmdet', 'mmpretrain'):
        importlib.import_module(name)

    def pretend(**versions):
        names = {name.replace('_', '-'): version for name, version in versions.items()}

        def version(name):
            if name not in names:
                raise metadata.PackageNotFoundError(name)
            return names[name]

        monkeypatch.setattr(metadata, 'distributions', lambda name: [name] * (name in names))
        monkeypatch.setattr(metadata, 'version', version)

    return pretend


def finding(name):
    """The finding of that name, without the slow ones."""
    return next(f for f in doctor.examine() if f.name == name)


def test_a_sound_environment():
    done = run_doctor('-m', 'mmscconv.doctor')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('Nothing is wrong.\n')
    assert not done.stderr
    for name in ('python', 'torch', 'torchvision', 'numpy', 'opencv', 'setuptools', 'mmengine', 'mmcv', 'mmdet'):
        assert re.search(rf'^ +{name} +\d+\.\d+', done.stdout, re.MULTILINE), name
    assert 'NMS keeps the right boxes' in done.stdout


def test_broken_and_missing_packages_are_all_reported(tmp_path):
    """Modules that fail in every way that is known, in front of the sound ones."""
    (tmp_path / 'torchvision.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (tmp_path / 'mmdet.py').write_text('raise AssertionError("MMCV==2.2.0 is used but incompatible")')
    (tmp_path / 'mmpretrain.py').write_text('import no_such_module')
    (tmp_path / 'cv2.py').write_text('raise SystemExit("libGL.so.1: cannot open shared object file")')
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('__version__ = "2.3.6"')
    done = run_doctor(ROOT / 'tools' / 'doctor.py', path=[tmp_path])
    assert done.returncode == 1
    assert 'Traceback' not in done.stdout + done.stderr
    problems = dict(re.findall(r'^PROBLEM (mmcv ops|\S+) +(.+)$', done.stdout, re.MULTILINE))
    assert problems['torchvision'] == 'cannot be imported: operator torchvision::nms does not exist'
    assert problems['mmdet'] == 'cannot be imported: MMCV==2.2.0 is used but incompatible'
    assert problems['mmpretrain'] == "cannot be imported: No module named 'no_such_module'"
    assert problems['opencv'] == 'cannot be imported: libGL.so.1: cannot open shared object file'
    assert "No module named 'mmcv.ops'" in problems['mmcv ops']
    assert len(problems) == 5
    remedies = done.stdout.partition('To mend')[2]
    minor = int(metadata.version('torch').split('.')[1])
    assert f"--force-reinstall --no-deps 'torchvision==0.{minor + 15}.*'" in remedies
    rebuild = f'pip uninstall -y {MMCV.partition("==")[0]}; pip install --no-cache-dir --no-build-isolation {MMCV}'
    assert rebuild in remedies


@pytest.mark.parametrize('command', [[ROOT / 'tools' / 'doctor.py'], ['-m', 'mmscconv.doctor']], ids=['tool', 'module'])
def test_without_torch(command, tmp_path):
    (tmp_path / 'torch.py').write_text('raise OSError("libcudart.so.13: cannot open shared object file")')
    done = run_doctor(*command, path=[tmp_path])
    assert done.returncode == 1
    assert 'torch cannot be imported: libcudart' in done.stderr
    assert done.stderr.endswith(f'To mend:\n    {environment.TORCH}\n')
    assert ('Traceback' in done.stderr) == ('-m' in command)  # Python's own, before the doctor's first line


@pytest.mark.parametrize(
    ('installed', 'value', 'remedy'),
    [
        (dict(onedl_mmengine='0.10.12', onedl_mmcv='2.3.6'), 'onedl (onedl-mmengine, onedl-mmcv)', ''),
        (dict(mmengine='0.10.7', mmdet='3.3.0'), 'official (mmengine, mmdet)', ''),
        (
            dict(onedl_mmdetection='3.5.1', mmdet='3.3.0'),
            'both, and each overwrites the files of the other: onedl-mmdetection, mmdet',
            'pip uninstall -y onedl-mmdetection mmdet; pip install --no-build-isolation onedl-mmengine',
        ),
        ({}, 'none', 'pip install --no-build-isolation onedl-mmengine'),
    ],
    ids=['onedl', 'official', 'both', 'none'],
)
def test_stacks(pip_knows, installed, value, remedy):
    pip_knows(torch='2.11.0', **installed)
    found = finding('stack')
    assert found.value == value
    assert found.remedy.startswith(remedy)
    assert bool(found.remedy) == bool(remedy)


def test_names_are_compared_as_pip_does(monkeypatch, tmp_path):
    """Folders are named in several ways by pip's versions, and one may have lost its file."""
    for name in ('OneDL_MMCV-2.3.6', 'broken-1.0'):
        (tmp_path / f'{name}.dist-info').mkdir()
    (tmp_path / 'OneDL_MMCV-2.3.6.dist-info' / 'METADATA').write_text('Name: OneDL_MMCV\n')
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    assert environment.installed_stacks() == {'onedl': ['onedl-mmcv']}


def test_setuptools_matters_to_the_official_stack_alone(pip_knows):
    pip_knows(torch='2.11.0', setuptools='82.0.1', mmengine='0.10.7')
    assert finding('setuptools').remedy == "pip install 'setuptools<82'"
    pip_knows(torch='2.11.0', setuptools='82.0.1', onedl_mmengine='0.10.12')
    assert not finding('setuptools').remedy


def test_old_torch(monkeypatch):
    monkeypatch.setattr('torch.__version__', '2.3.1+cpu')
    found = finding('torch')
    assert found.value == '2.3.1+cpu is too old: at least 2.4 is needed'
    assert found.remedy == environment.TORCH


@pytest.mark.parametrize(
    ('probe', 'value'),
    [
        ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'do not work: ended by signal 11'),
        (
            doctor.NMS_PROBE.replace('from mmcv.ops import nms', 'nms = lambda boxes, *_: (boxes, torch.arange(3))'),
            'do not work: AssertionError: NMS on cpu keeps boxes [0, 1, 2] instead of [0, 2]',
        ),
    ],
    ids=['crash', 'wrong boxes'],
)
def test_ops_that_crash_or_err(monkeypatch, probe, value):
    monkeypatch.setattr(doctor, 'NMS_PROBE', probe)
    found = doctor._ops('official')
    assert found.value == value
    assert found.remedy == 'pip uninstall -y mmcv; pip install --no-cache-dir --no-build-isolation mmcv==2.1.0'


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert not doctor._compiler(needed=False).remedy
    assert doctor._compiler(needed=True).remedy == 'apt-get install -y build-essential'


def test_data_folders(tmp_path):
    (found,) = doctor._data(tmp_path)
    assert 'no data set' in found.value
    for part in ('coco/train2017', 'coco/val2017', 'coco/annotations', 'imagenet/train', 'imagenet/val'):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / 'coco' / 'annotations' / 'instances_val2017.json').touch()
    values = {Path(f.name).name: f.value for f in doctor._data(tmp_path)}
    assert values == {'coco': 'incomplete, without annotations/instances_train2017.json', 'imagenet': 'found'}


def test_data_folders_are_the_configs():
    configs = ('retinanet_r50_coco', 'retinanet_r50_voc', 'resnet50_imagenet')
    small = ('retinanet_r18_digits', 'retinanet_r18_cells')
    cifar = ('resnet56_cifar10', 'resnet56_cifar100', 'resnet56_cifar10_folder')
    roots = {get_config(name).data_root.strip('/') for name in (*configs, *small, *cifar)}
    assert roots == {f'data/{name}' for name in doctor.DATA}


def test_pins_are_those_of_setup_py():
    text = (ROOT / 'setup.py').read_text()
    makefile = (ROOT / 'Makefile').read_text()
    for pins in environment.STACKS.values():
        assert all(f"'{pin}'" in text for pin in pins.values())
    assert ' '.join(environment.STACKS['onedl'].values()) in makefile
    assert environment.TORCH.removeprefix('pip install ') in makefile
