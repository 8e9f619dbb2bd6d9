"""Runs the tools as a user does, with overrides that make a network small enough for a test."""

import gc
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from helpers import forks
from helpers.paths import ROOT
from helpers.quick_configs import make_configs_quick

# The stack that the tests run on, as the remedies for a broken environment name it.
OFFICIAL = any(metadata.distributions(name='mmengine'))
MMCV, MMENGINE = ('mmcv==2.1.0', 'mmengine==0.10.7') if OFFICIAL else ('onedl-mmcv==2.3.6', 'onedl-mmengine==0.10.12')

STREAMS = 'stdout', 'stderr'
NARROW = ['model.backbone.base_channels=16', 'model.backbone.stem_channels=8']
NARROW_DETECTOR = [
    *NARROW,
    'model.neck.in_channels=[64,128,256,512]',
    'model.neck.out_channels=16',
    'model.bbox_head.in_channels=16',
    'model.bbox_head.feat_channels=16',
    'model.bbox_head.stacked_convs=1',
]
ONE_WORKER = [
    f'{stage}_dataloader.{setting}'
    for stage in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]
SMALL_TRAIN = [
    'train_dataloader.batch_size=2',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
]
DIGITS = [
    *ONE_WORKER,
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.checkpoint.interval=1',
]
SMALL_TEST = [f'{stage}_dataloader.dataset.indices=3' for stage in ('val', 'test')]


def run_tool(name, *args, options=(), cwd=None, check=True, **variables):
    """Run tools/NAME in a process of its own, with ``variables`` in its environment; return what ended it and its text.

    The process is a fork of one that has imported mmdet, which takes longer than most of the tools' work here. Tests
    that start a tool from a shell see what it does when it imports everything itself.
    """
    argv = [str(ROOT / 'tools' / name), *map(str, args)]
    if options:
        argv += ['--cfg-options', *options]
    env = {**_environment(), **variables}
    with tempfile.TemporaryDirectory() as folder:
        process = forks.CONTEXT.Process(target=_run_here, args=(argv, env, cwd or Path.cwd(), Path(folder)))
        process.start()
        process.join(400)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f'{name} had not ended after 400 seconds')
        files = [Path(folder, stream) for stream in STREAMS]
        done = Done(process.exitcode, *(file.read_text() if file.exists() else '' for file in files))
    assert not check or done.returncode == 0, done.text[-4000:]
    return done


def start_tool(*command, cwd=None, **variables):
    """Start a tool as a shell does, by an interpreter or ``bash``, and return what ended it and its text."""
    command, env = [*map(str, command)], {**_environment(), **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=400)
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Done:
    """A tool that has ended: its exit status, negative for the signal that ended it, and its two streams."""

    returncode: int | None
    stdout: str
    stderr: str

    @property
    def text(self):
        return self.stdout + self.stderr


def _environment():
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable}


def _run_here(argv, env, cwd, folder):
    """Become the tool: its environment, folder and streams, then its file as the main module."""
    for number, stream in enumerate(STREAMS, 1):
        file = os.open(folder / stream, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    sys.path[:0] = [str(Path(argv[0]).parent), *filter(None, env.get('PYTHONPATH', '').split(os.pathsep))]
    gc.freeze()  # what the server has imported is not searched for garbage again, as mmengine asks for twice a training
    make_configs_quick()
    runpy.run_path(argv[0], run_name='__main__')
