#!/usr/bin/env python
"""Train a detector or a classifier from its config."""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the lr by the images of a step / auto_scale_lr.base_batch_size',
    )
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='resume from this checkpoint; without a value, from the latest'
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()

    from mmengine.device import get_device
    from mmengine.dist import get_world_size
    from mmengine.logging import print_log

    from mmscconv.checks.files import check_checkpoints
    from mmscconv.checks.inputs import check_inputs
    from mmscconv.engine.checkpoints import check_pretrained, load_safely
    from mmscconv.engine.cli import broken_annotations_named, build_runner, load_config, set_resume
    from mmscconv.engine.disk import full_disk_named
    from mmscconv.engine.hooks import RequireMatchingCheckpoint

    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise UserError('--amp (AmpOptimWrapper) needs a GPU: mmengine has no mixed precision on CPU; leave it out')
    base_batch = cfg.get('auto_scale_lr', {}).get('base_batch_size')
    if args.auto_scale_lr:
        if base_batch is None:
            raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}')
        cfg.auto_scale_lr.enable = True
    load_safely(args.trusted)
    check_inputs(cfg, ('train', 'val'))
    if args.resume:
        set_resume(cfg, args.resume, args.trusted)
    check_checkpoints(cfg)
    with full_disk_named(cfg.work_dir):
        runner = build_runner(cfg)
    runner.register_hook(RequireMatchingCheckpoint('resume' if cfg.get('resume') else 'start'))
    check_pretrained(runner.model, args.trusted)
    batch = (cfg.train_dataloader.get('batch_size') or 1) * get_world_size()
    batch *= cfg.optim_wrapper.get('accumulative_counts', 1)
    if base_batch and batch != base_batch and not args.auto_scale_lr:
        print_log(
            f'Total batch {batch}, but the learning rate is meant for {base_batch}: pass --auto-scale-lr to scale it.',
            logger='current',
            level=logging.WARNING,
        )
    with full_disk_named(cfg.work_dir), broken_annotations_named():
        runner.train()


if __name__ == '__main__':
    sys.exit(run(main))
