"""The way of a config through training and testing; all checks run before anything long starts.

1. Read the config and apply the command line's changes.
2. From now on, load checkpoints without running code.
3. Check the input: keys, files, annotations, classes (:mod:`mmscconv.checks.inputs`).
4. Find the checkpoint to resume from, or to test.
5. Build the runner, with the hooks that compare checkpoint and model.
6. Start the run; library errors that the user can mend become one line.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmscconv.models  # noqa: F401, a config that sets custom_imports anew may omit these layers
from mmscconv.checks.files import check_checkpoints
from mmscconv.checks.inputs import check_inputs
from mmscconv.checks.settings import check_counting
from mmscconv.datasets.reading import annotations_checked
from mmscconv.engine import options
from mmscconv.engine.allocation import keep_freed_memory
from mmscconv.engine.cli import config_of
from mmscconv.engine.runner import CheckedRunner, TestingRunner
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained, user_message
from mmscconv.hooks.matching_checkpoint import RequireMatchingCheckpoint
from mmscconv.models.deploy_hook import DeployForm
from mmscconv.storage.checkpoints import check_pretrained, checkpoint_to_resume, load_safely, require_resumable
from mmscconv.storage.disk import alone_in, full_disk_named, replacing, require_writable

# Variables that a launcher gives to its processes, the rank first, and the way to start it.
LAUNCHED = {
    'pytorch': (
        ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
        'start it by tools/dist_train.sh CONFIG DEVICES, or a test by tools/dist_test.sh',
    ),
    'slurm': (('SLURM_PROCID',), 'start it by tools/slurm_train.sh or srun'),
    'mpi': (('OMPI_COMM_WORLD_RANK',), 'start it by mpirun'),
}


def train(args: argparse.Namespace) -> None:
    """Train with the arguments of ``tools/train.py``.

    Raises:
        UserError: A flag, file or setting is wrong; the message says how to mend it.
    """
    cfg = _load(args, ('train_dataloader', 'train_cfg', 'optim_wrapper'))
    if cfg.get('resume') and not args.resume:
        raise UserError(
            f'{cfg.filename} has resume=True, as a resumed run writes it: pass --resume to go on, or '
            '--cfg-options resume=False load_from=None to train anew'
        )
    if not torch.cuda.is_available():
        keep_freed_memory()
    if args.amp:
        options.use_amp(cfg)
    options.fit_amp_to_device(cfg)
    if args.auto_scale_lr:
        options.scale_lr(cfg)
    check_counting(cfg)
    with made(cfg.work_dir), alone_in(cfg.work_dir) if rank_in(cfg.launcher) == 0 else nullcontext():
        with full_disk_named(cfg.work_dir):
            runner = checked_runner(cfg, ('train', 'val'), args.trusted, args.resume)
        check_pretrained(runner.model, args.trusted)
        if not args.auto_scale_lr and not cfg.get('resume'):  # whose lr is the checkpoint's
            options.warn_of_other_batch(cfg)
        with full_disk_named(cfg.work_dir), run_errors_named():
            runner.train()


def test(args: argparse.Namespace) -> None:
    """Evaluate a checkpoint with the arguments of ``tools/test.py``.

    Raises:
        UserError: A flag, file or setting is wrong; the message says how to mend it.
    """
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out writes a pickle file, its name must end with .pkl or .pickle: {args.out}')
    cfg = _load(args, ('test_dataloader', 'test_cfg', 'test_evaluator'))
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.tta:
        options.use_tta(cfg)
    if args.show or args.show_dir:
        options.draw(cfg, args.show, args.show_dir, args.wait_time)
    full_disk = functools.partial(full_disk_named, args.out or cfg.work_dir, 'repeat the command')
    with made(cfg.work_dir), full_disk():
        runner = checked_runner(cfg, ('test',), args.trusted)
    if args.deploy:
        runner.register_hook(DeployForm())
    with ExitStack() as stack:
        stack.enter_context(full_disk())
        stack.enter_context(run_errors_named())
        if args.out:
            # All processes collect results, the main one writes them.
            out = stack.enter_context(replacing(args.out)) if is_main_process() else Path(args.out)
            if is_main_process():
                require_writable(out)
            runner.test_evaluator.metrics.append(options.dump_metric(cfg, str(out)))
        runner.test()


def checked_runner(cfg: Config, stages: Sequence[str], trusted: bool, resume: str | None = None) -> Runner:
    """Check the files and settings of ``cfg``, then build its runner.

    Args:
        cfg: Config with ``launcher`` and ``work_dir``.
        stages: Those of ``'train'``, ``'val'``, ``'test'`` whose data are read.
        trusted: Allow checkpoints that hold other objects than weights.
        resume: A checkpoint, ``'auto'`` for the newest good one in the work dir, None to start anew.

    Raises:
        UserError: A file or setting is wrong.
    """
    load_safely(trusted)
    check_inputs(cfg, stages)
    if resume:
        _set_resume(cfg, resume, trusted)
    check_checkpoints(cfg, stages)
    runner = build_runner(cfg, TestingRunner if 'test' in stages else CheckedRunner)
    purpose = 'test' if 'test' in stages else 'resume' if cfg.get('resume') else 'start'
    runner.register_hook(RequireMatchingCheckpoint(purpose))
    return runner


def build_runner(cfg: Config, default: type[Runner] = CheckedRunner) -> Runner:
    """Build the config's runner, of the ``default`` class if the config names none."""
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's own initialization and model wrapper need a CUDA device.
        torch.distributed.init_process_group('gloo')
        cfg.setdefault('model_wrapper_cfg', {'type': 'MMDistributedDataParallel', 'device_ids': None})
    with explained('cannot build what the config asks for'):
        return RUNNERS.build(cfg) if 'runner_type' in cfg else default.from_cfg(cfg)


@contextmanager
def run_errors_named() -> Iterator[None]:
    """Check annotation files as they are read; turn library errors that the user can mend into one line.

    Raises:
        UserError: A broken annotation file, data set, downloaded checkpoint or setting.
    """
    try:
        with annotations_checked():
            yield
    except UserError:
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error


def _load(args: argparse.Namespace, needed: Sequence[str]) -> Config:
    """Read the config, which must have the keys ``needed`` besides ``model``, and apply the common flags."""
    _require_launched(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = config_of(args)
    missing = [key for key in ('model', *needed) if cfg.get(key) is None]  # test_cfg may be an empty dict
    if missing:
        raise UserError(f'{args.config} has no {", ".join(missing)}: is it a part of a config, to inherit from?')
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def _require_launched(launcher: str) -> None:
    variables, way_out = LAUNCHED.get(launcher, ((), ''))
    missing = [name for name in variables if name not in os.environ]
    if missing:
        raise UserError(f'--launcher {launcher} needs {", ".join(missing)} in the environment: {way_out}')


def rank_in(launcher: str) -> int:
    """Return the number of this process among those of its launcher, which begin with 0."""
    return int(os.environ[LAUNCHED[launcher][0][0]]) if launcher in LAUNCHED else 0


@contextmanager
def made(work_dir: str) -> Iterator[None]:
    """Make a work dir; take folders that are still empty away again if the body raises.

    Raises:
        UserError: The folder cannot be made.
    """
    folder = Path(work_dir)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a folder may be there and read-only
            pass
    except OSError as error:
        raise UserError(f'cannot write to the work dir {work_dir}: {error.strerror} (pass --work-dir)') from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a folder that is not empty any more
            for path in missing:
                path.rmdir()
        raise


def _set_resume(cfg: Config, checkpoint: str, trusted: bool) -> None:
    resumed: str | None = checkpoint
    warn = functools.partial(print_log, logger=None, level=logging.WARNING)
    if checkpoint == 'auto':
        found = checkpoint_to_resume(cfg.work_dir, warn, trusted)
        if found is None:
            print_log(f'no checkpoint to resume in {cfg.work_dir}: training starts anew', logger=None)
        resumed = None if found is None else str(found)
    elif '://' not in checkpoint:
        require_resumable(checkpoint, trusted)
    # A config that a resumed run has written names that run's checkpoint.
    start = None if cfg.get('resume') else cfg.get('load_from')
    cfg.resume = resumed is not None
    cfg.load_from = resumed or start
