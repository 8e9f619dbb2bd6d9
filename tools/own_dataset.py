#!/usr/bin/env python
"""Write the config that trains a detector on a folder of annotated images.

COCO, VOC and YOLO are recognised. The config, COCO files of the training and the
validation set, and a sheet with images and counts go to a new folder; the images stay
where they are. The tool prints counts of everything that it leaves out or changes, and
the two commands that follow: training and its report.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run

EXAMPLES = """examples:
  python tools/own_dataset.py data/cells                     a folder with images and annotations
  python tools/own_dataset.py data/cells --baseline          the twin with plain convolutions, on the same split
  python tools/own_dataset.py data/cells/data.yaml --backbone r50 --init scconv_resnet50.pth"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data', type=Path, help='folder of the data set, a JSON file of COCO or a YAML file of YOLO')
    parser.add_argument('--out', type=Path, help='folder to write (default: own_datasets/<data>_<network>)')
    parser.add_argument('--form', choices=['coco', 'voc', 'yolo'], help='format of the data, if it has several')
    parser.add_argument('--images', type=Path, help='folder of the images, if they do not lie below DATA')
    parser.add_argument('--classes', nargs='+', metavar='NAME', help='train on these classes alone, in this order')
    parser.add_argument(
        '--backbone', choices=['r18', 'r50', 'r101'], default='r18', help="r18 is the demo's small network (default)"
    )
    parser.add_argument('--baseline', action='store_true', help='plain convolutions in place of SCConv')
    parser.add_argument('--size', metavar='WxH', help='fit images into this size (default: chosen from the data)')
    parser.add_argument('--init', metavar='CHECKPOINT', help='start from these weights, of a detector or a classifier')
    parser.add_argument('--seed', type=int, default=0, help='seed of the split, if the data has none (default: 0)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        import globox  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing: pip install --no-build-isolation '.[data]' (in the checkout)"
        ) from error
    check_environment()

    from mmscconv.own_data.job import OwnDatasetJob

    job = OwnDatasetJob(
        source=args.data,
        out=args.out,
        form=args.form,
        images=args.images,
        classes=args.classes,
        backbone=args.backbone,
        baseline=args.baseline,
        size=args.size and parse_size(args.size),
        init=args.init,
        seed=args.seed,
    )
    for line in job.run(Path(sys.argv[0]).parent):
        print(line, flush=True)


def parse_size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split('x'))
    except ValueError as error:
        raise UserError(f'--size must be WxH, for example 640x480, got {text}') from error
    if min(width, height) < 32:
        raise UserError(f'--size must be 32 pixels at least, got {text}')
    return width, height


if __name__ == '__main__':
    sys.exit(run(main))
