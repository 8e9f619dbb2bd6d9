"""The command line that tools/train.py and tools/test.py share: mmdet's flags, plus --data-root."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import pickle
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmscconv.checks.files import datasets
from mmscconv.checks.settings import check_keys
from mmscconv.engine.checkpoints import checkpoint_to_resume, require_resumable
from mmscconv.engine.runner import CheckedRunner
from mmscconv.errors import UserError


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results (default: work_dirs/<config name>)')
    add_config_arguments(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes the rank as an argument, torchrun as a variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='settings to override, nested ones as a.b.c=value, lists as key="[a,b]" without white space',
    )
    parser.add_argument('--data-root', help="folder of the data, in place of the config's data_root wherever it stands")
    parser.add_argument('--download', action='store_true', help='let a data set that can (CIFAR) fetch what is missing')
    parser.add_argument(
        '--trusted',
        action='store_true',
        help='load checkpoints that hold other objects than weights (may run any code)',
    )


def read_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the flags that change it."""
    if not Path(args.config).is_file():
        raise UserError(f'config is not there: {args.config}')
    with explained(f'config {args.config}'):
        cfg = Config.fromfile(args.config)
        check_keys(cfg, args.cfg_options or (), args.config)
        if args.data_root:
            move_data_root(cfg, args.data_root)
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
    if args.download:
        for stage in ('train', 'val', 'test'):
            for dataset in datasets(cfg.get(f'{stage}_dataloader')):
                if 'download' in dataset:
                    dataset['download'] = True
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the common flags."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    try:
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write to the work dir {cfg.work_dir}: {error.strerror} (pass --work-dir)') from error
    return cfg


def move_data_root(cfg: Config, data_root: str) -> None:
    """Replace the config's ``data_root`` at the start of every string that begins with it.

    A config that inherits its data sets and sets ``data_root`` alone leaves them where they were; their own root is
    replaced as well then.

    Raises:
        UserError: The config has no ``data_root``, or data sets with several others.
    """
    root = cfg.get('data_root')
    if not root:
        raise UserError(f'--data-root needs a config with a data_root: {cfg.filename}')
    theirs = {
        dataset['data_root'].rstrip('/')
        for stage in ('train', 'val', 'test')
        for dataset in datasets(cfg.get(f'{stage}_dataloader'))
        if dataset.get('data_root')
    }
    old = [root.rstrip('/')]
    if theirs and not any(_is_below(path, old[0]) for path in theirs):
        if len(theirs) > 1:
            raise UserError(
                f"--data-root replaces the config's data_root {root!r}, but its data sets have "
                f'{", ".join(map(repr, sorted(theirs)))}: set their data_root in the config'
            )
        old += theirs
    new = data_root.rstrip('/') or '/'

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = moved(value)
        elif isinstance(node, list | tuple):
            return type(node)(moved(value) for value in node)
        elif isinstance(node, str):
            return next((new + node[len(path) :] for path in old if _is_below(node, path)), node)
        return node

    moved(cfg._cfg_dict)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f'{folder}/')


def set_resume(cfg: Config, checkpoint: str, trusted: bool = False) -> None:
    """Let the config resume from ``checkpoint``, or for 'auto' from the newest good one in the work dir."""
    resumed: str | None = checkpoint
    warn = functools.partial(print_log, logger=None, level=logging.WARNING)
    if checkpoint == 'auto':
        found = checkpoint_to_resume(cfg.work_dir, warn, trusted)
        if found is None:
            print_log(f'no checkpoint to resume in {cfg.work_dir}: training starts anew', logger=None)
        resumed = None if found is None else str(found)
    elif '://' not in checkpoint:
        require_resumable(checkpoint, trusted)
    cfg.resume = resumed is not None
    cfg.load_from = resumed or cfg.get('load_from')


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Show what a registry or a layer refuses as one line that begins with ``what``."""
    try:
        yield
    except (AssertionError, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError) as error:
        reason = ' '.join(str(error.args[0] if error.args else error).split())
        raise UserError(f'{what}: {reason or type(error).__name__}') from error


@contextmanager
def broken_annotations_named() -> Iterator[None]:
    """Check annotation files as they are read; where building or reading fails, say what is to blame."""
    from mmscconv.datasets.reading import annotations_checked

    try:
        with annotations_checked():
            yield
    except UserError:
        raise
    except Exception as error:
        problem = None
        if isinstance(error, pickle.UnpicklingError):
            problem = f'a fetched checkpoint may run code when loaded: {str(error).splitlines()[0]} (pass --trusted)'
        elif isinstance(error, AssertionError | RuntimeError) and _raised_by_a_dataset(error):
            problem = ' '.join(str(error).split())
            problem += ' (pass --download)' if 'download=True' in problem else ''
        elif _raised_by_building(error):
            problem = f'cannot build what the config asks for: {" ".join(str(error).split())}'
        if not problem:
            raise
        raise UserError(problem) from error


def _raised_by_a_dataset(error: Exception) -> bool:
    """Whether OpenMMLab's data sets refused what they found; their assertions are messages to the user."""
    return 'datasets' in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


def _raised_by_building(error: Exception) -> bool:
    """Whether a setting of the config was refused: mmengine builds data sets and optimizers when a run begins."""
    calls = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)[-2:]}
    return isinstance(error, KeyError | TypeError | ValueError) and 'build_functions.py' in calls


def build_runner(cfg: Config) -> Runner:
    """Build the runner with the hooks that every run gets."""
    # A config that inherits ours and sets custom_imports for itself replaces the list that names these.
    import mmscconv.models  # noqa: F401, registers the layers and backbones

    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's own start and wrapping ask for a CUDA device.
        torch.distributed.init_process_group('gloo')
        cfg.setdefault('model_wrapper_cfg', {'type': 'MMDistributedDataParallel', 'device_ids': None})
    with explained('cannot build what the config asks for'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else CheckedRunner.from_cfg(cfg)


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the dataset config inside any wrappers."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset
