import dataclasses
import gc
import importlib.util
import logging
import os
import sys
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from helpers.apart import CHANNEL, Apart
from helpers.once import made_once
from helpers.paths import ROOT

# Chosen by a test, not by the shell that starts it. CC stays: the tests also run with other compilers.
SETTINGS = 'MMSCCONV_BACKEND', 'MMSCCONV_AMX', 'MMSCCONV_TRACEBACK'
# Compiled once for all workers and runs, whatever a test takes for the home folder.
KERNELS = ROOT / '.pytest_cache' / 'kernels'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session', autouse=True)
def _hypothesis_writes_elsewhere(tmp_path_factory):
    """Not into the folder from which the tests are run."""
    with patch.dict(os.environ, HYPOTHESIS_STORAGE_DIRECTORY=str(tmp_path_factory.mktemp('hypothesis'))):
        yield


@pytest.fixture(autouse=True)
def _process_is_restored():
    """A tool that runs in this process changes for all of it how checkpoints are loaded."""
    module = sys.modules.get('mmengine.runner.checkpoint')
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))
        if module:
            stack.enter_context(
                patch.object(module.CheckpointLoader, '_schemes', dict(module.CheckpointLoader._schemes))
            )
        yield


@pytest.fixture(scope='session', autouse=True)
def _configs_are_quick():
    try:
        from helpers.quick_configs import make_configs_quick
    except ImportError:  # the layers are tested without mmengine, too
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        make_configs_quick(patch.setattr)
        yield


@pytest.fixture(scope='module', params=['of this machine', pytest.param('any', marks=pytest.mark.slow)])
def instructions(request):
    """The vector registers that the kernels are written for: the widest that this machine has, or the narrowest."""
    from mmscconv.ops import compiled

    caches = (compiled.unavailable, compiled.build, compiled._library)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'any':
            patch.setattr(compiled, 'KERNELS', dataclasses.replace(compiled.KERNELS, flags=((),)))
            for cache in caches:
                cache.cache_clear()
        assert compiled.unavailable() is None
        yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def called(monkeypatch):
    """Names of the C functions that the ops call, those that pack weights left out."""
    from helpers.spies import kernels_called

    return kernels_called(monkeypatch)


@pytest.fixture(scope='session')
def real_data(tmp_path_factory):
    """Folder with coco/, VOCdevkit/ and imagenet_mini/ in their standard layouts, of images that a dependency ships."""
    from mmdet.datasets import CocoDataset, VOCDataset

    from helpers.photographs import write_data

    classes = CocoDataset.METAINFO['classes'], VOCDataset.METAINFO['classes']
    return made_once(tmp_path_factory, 'real_data', lambda folder: write_data(folder, *classes))


@pytest.fixture(scope='session')
def published():
    """Function from the name of a published data set to its folder or archive; it skips where there is none."""
    folder = Path(os.environ.get('MMSCCONV_TEST_DATA') or ROOT.parent / 'shared' / 'data')

    def find(name):
        if not (folder / name).exists():
            pytest.skip(
                f'{name}, a published data set, is not in {folder}: MMSCCONV_TEST_DATA names the folder with it'
            )
        return folder / name

    return find


@pytest.fixture(scope='session')
def root():
    """The repository's root folder."""
    return ROOT


def pytest_configure(config):
    """Keep the user's settings out, and let tests with the mark apart run in other processes, unless this is one.

    Modules of tests ask for the kernels as soon as they are imported.
    """
    environment = patch.dict(os.environ, MMSCCONV_CACHE_DIR=str(KERNELS))
    environment.start()
    config.add_cleanup(environment.stop)
    for name in SETTINGS:
        os.environ.pop(name, None)
    if CHANNEL not in os.environ:
        config.pluginmanager.register(Apart())


def pytest_collection_modifyitems(items):
    """Run the tests of faults first: they fork, which autograd refuses once another test has started its threads."""
    items.sort(key=lambda item: item.path.name != 'test_faults.py')


def pytest_collection_finish():
    """Spare each search for garbage, which mmengine asks for twice a training, the modules and all tests."""
    gc.freeze()


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run a tool's main in this process, which saves the seconds of importing torch: (status, stdout, stderr)."""
    from mmengine.logging import MMLogger

    from mmscconv.errors import run

    # Loggers of earlier runs hold streams that pytest has closed, would print tracebacks of that, and drop each
    # warning that they have written before.
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())

    def call(name, *args):
        path = ROOT / 'tools' / f'{name}.py'
        spec = importlib.util.spec_from_file_location(f'tools_{name}', path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, args)])
        capsys.readouterr()
        try:
            status = run(module.main)
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A tiny digits data set."""
    from helpers.running_tools import run_tool

    return made_once(
        tmp_path_factory,
        'digits',
        lambda folder: run_tool('make_digits.py', '--out', folder, '--train', 12, '--val', 4),
    )


@pytest.fixture(scope='session')
def digits_run(digits, tmp_path_factory):
    """Work dir of one epoch of the demo on the tiny digits, run from the folder cwd beside it, with home as HOME."""
    from helpers.running_tools import DIGITS, run_tool

    def train(folder):
        for name in ('cwd', 'home'):
            (folder / name).mkdir()
        run_tool(
            'train.py', ROOT / 'configs' / 'retinanet_scconv_r18_digits.py', '--data-root', digits,
            '--work-dir', folder / 'run', options=[*DIGITS, 'default_hooks.logger.interval=1'],
            cwd=folder / 'cwd', HOME=str(folder / 'home'),
        )  # fmt: skip

    return made_once(tmp_path_factory, 'digits_run', train) / 'run'
