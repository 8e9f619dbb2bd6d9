#!/usr/bin/env python
"""Train a detector or a classifier from its config."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import run


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision: fp16 on a GPU, bf16 on a CPU')
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
    from mmscconv.engine import launch

    launch.train(args)


if __name__ == '__main__':
    sys.exit(run(main))
