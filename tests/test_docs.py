"""The documentation's own code: the tutorials' configs build, and the commands for an own data set run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers.annotated import made_objects, write_coco, write_voc, write_yolo
from helpers.configs import build
from helpers.paths import ROOT
from helpers.running_tools import ONE_WORKER
from mmscconv import SCConv

TUTORIALS = ROOT / 'docs' / 'tutorials'


def blocks(page, language='python'):
    """Each block of a tutorial in ``language``."""
    return re.findall(rf'^```{language}\n(.*?)^```', (TUTORIALS / page).read_text(), re.DOTALL | re.MULTILINE)


def number_of_scconvs(model):
    return sum(isinstance(module, SCConv) for module in model.modules())


@pytest.mark.parametrize(
    ('page', 'index', 'scconvs'),
    [
        ('own_detector.md', 0, 16),
        ('own_detector.md', 1, 16 + 5),  # FPN's five; the stem has an odd number of channels
        ('own_detector.md', 2, 8),
        ('pretrain_to_detect.md', 0, 16),
        ('pretrain_to_detect.md', 1, 16),
    ],
)
def test_configs_of_the_tutorials_build(page, index, scconvs, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(blocks(page)[index])
    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    assert number_of_scconvs(build(cfg)) == scconvs


@pytest.fixture(scope='module')
def beginner(tmp_path_factory):
    """A folder with tools/ and with data/ as the tutorial has them, of eight tiny images each."""
    folder = tmp_path_factory.mktemp('beginner')
    (folder / 'tools').symlink_to(ROOT / 'tools')
    objects = made_objects()
    stems = list(objects)
    splits = {'train': stems[:6], 'val': stems[6:]}
    write_voc(folder / 'data' / 'cells_voc', objects, splits)
    write_coco(folder / 'data' / 'cells_coco', objects, splits)
    write_yolo(folder / 'data' / 'cells_yolo', objects, splits)
    return folder


@pytest.mark.parametrize('index', range(3))
def test_commands_of_own_dataset(index, beginner):
    """The commands as they stand; the training alone is cut to one epoch."""
    commands = blocks('own_dataset.md', 'bash')[index].splitlines()
    names = [re.search(r'tools/(\w+)\.py', command).group(1) for command in commands]
    assert names == ['own_dataset', 'train', 'report']
    cut = {'train': f' --cfg-options {" ".join([*ONE_WORKER, "train_cfg.max_epochs=1", "train_cfg.val_interval=1"])}'}
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    printed = []
    for command, name in zip(commands, names, strict=True):
        done = subprocess.run(
            command + cut.get(name, ''), shell=True, cwd=beginner, capture_output=True, text=True, timeout=400,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': path},
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        printed.append(done.stdout)
    # The first command says what the page says comes next.
    assert [line.split('#')[0].strip() for line in printed[0].splitlines()[-2:]] == commands[1:]
    work_dir = beginner / commands[2].split()[-1]
    assert 'Where it does worst' in (work_dir / 'report.html').read_text()
