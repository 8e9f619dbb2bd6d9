"""Runs the tools as a user does, with overrides that make a network small enough for a test."""

import os
import subprocess
import sys
from importlib import metadata

from helpers.paths import ROOT

# The stack that the tests run on, as the remedies for a broken environment name it.
OFFICIAL = any(d.metadata['Name'] == 'mmengine' for d in metadata.distributions())
MMCV, MMENGINE = ('mmcv==2.1.0', 'mmengine==0.10.7') if OFFICIAL else ('onedl-mmcv==2.3.6', 'onedl-mmengine==0.10.12')

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


def run_tool(name, *args, options=(), cwd=None, check=True, launcher=(sys.executable,), **variables):
    command = [*launcher, str(ROOT / 'tools' / name), *map(str, args)]
    if options:
        command += ['--cfg-options', *options]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=400)
    done.text = done.stdout + done.stderr
    assert not check or done.returncode == 0, done.text[-4000:]
    return done
