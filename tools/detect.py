#!/usr/bin/env python
"""Detect objects in images, print them as a table or as JSON, and draw them.

By default with the shipped weights of SCConv on handwritten digits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run

if TYPE_CHECKING:
    from mmscconv.engine.detecting import Detection

DEFAULT = 'retinanet_scconv_r18_digits'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='+', type=Path, help='image files, and folders of images')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='draw the boxes into images in this folder')
    parser.add_argument(
        '--config', default=DEFAULT, help='config file, or name of a shipped config (default: %(default)s)'
    )
    parser.add_argument('--checkpoint', type=Path, help="(default: the shipped weights of the config's name)")
    parser.add_argument('--score', type=float, default=0.3, help='least score of an object (default: %(default)s)')
    parser.add_argument('--json', action='store_true', help='print JSON in place of a table')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    parser.add_argument(
        '--trusted',
        action='store_true',
        help='load a checkpoint that holds other objects than weights (may run any code)',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not 0 <= args.score <= 1:
        raise UserError(f'--score must lie in [0, 1], got {args.score}')
    found: list[Detection] = []
    try:
        with redirect_stdout(sys.stderr):  # libraries print there, and the output may be read by a program
            files = detect_into(found, args)
    except BaseException:
        if found:  # an image that fails late, or an interrupt, loses none of those before it
            print_detections(found, args.json)
        raise
    print_detections(found, args.json)
    if not args.json:
        print(f'{len(found)} objects in {len(files)} images' + (f', drawn into {args.out}' if args.out else ''))


def print_detections(found: Sequence[Detection], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    from mmscconv.table import Table

    table = Table(('image', 'class', 'score', 'x', 'y', 'width', 'height'))
    table.rows += [(one.image, one.label, f'{one.score:.2f}', *(f'{v:.1f}' for v in one.box)) for one in found]
    print(table.markdown(), end='')


def detect_into(found: list[Detection], args: argparse.Namespace) -> list[Path]:
    """Append what is detected to ``found``, image by image, and return the images."""
    check_environment()
    from mmscconv.configuration import read_config
    from mmscconv.engine.detecting import detect, image_files, load_detector, make_folder
    from mmscconv.shipped import config_file, get_weights

    files = image_files(args.images)
    config = Path(args.config) if Path(args.config).is_file() else config_file(args.config)
    checkpoint = args.checkpoint or get_weights(config.stem)
    if args.out:
        make_folder(args.out, files)
    model = load_detector(read_config(config), checkpoint, args.trusted, args.device)
    for one in detect(model, files, args.score, args.out):
        found.append(one)
    return files


if __name__ == '__main__':
    sys.exit(run(main))
