#!/usr/bin/env python
"""Judge a trained detector on one HTML page.

The checkpoint runs once on the validation set of the config in WORK_DIR. The page has
the result by class and size, precision-recall curves, the confusion matrix, the images
with the most wrong boxes, the curves of the training, the share of informative
positions of each SRU, parameters, multiply-adds, time for an image, versions and the
config. The page is one file that needs no network.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import add_config_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='work dir of tools/train.py')
    parser.add_argument('--checkpoint', type=Path, help='checkpoint to judge (default: the last in WORK_DIR)')
    parser.add_argument('--out', type=Path, help='page to write (default: WORK_DIR/report.html)')
    parser.add_argument('--worst', type=int, default=12, metavar='N', help='images to draw (default: %(default)s)')
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing: pip install --no-build-isolation '.[report]' (in the checkout)"
        ) from error

    from mmscconv.engine.cli import config_of
    from mmscconv.report.job import ReportJob
    from mmscconv.report.run_dir import find_checkpoint, find_config

    if args.worst < 0:
        raise UserError(f'--worst must not be negative, got {args.worst}')
    args.config = str(find_config(args.work_dir))
    checkpoint = args.checkpoint or find_checkpoint(args.work_dir)
    out = args.out or args.work_dir / 'report.html'
    job = ReportJob(config_of(args), args.work_dir, checkpoint, out, args.worst, args.trusted)
    print('\n'.join(job.run()))


if __name__ == '__main__':
    sys.exit(run(main))
