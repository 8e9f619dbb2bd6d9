#!/usr/bin/env python
"""Evaluate a checkpoint of a detector or a classifier."""

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
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='draw predictions into this folder, under the work dir unless absolute')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--deploy', action='store_true', help='fold norms into convolutions and SCConvs first')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()
    from mmscconv.engine import launch

    launch.test(args)


if __name__ == '__main__':
    sys.exit(run(main))
