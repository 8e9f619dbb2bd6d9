#!/usr/bin/env python
"""Write a checkpoint of a classifier or a detector as ONNX, for OpenVINO or ncnn, or by torch.export.

The file is compared with PyTorch on real images, at more than one batch and size,
and is kept only if file and PyTorch agree.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import add_config_arguments
    from mmscconv.export.formats import FORMATS, SUFFIXES
    from mmscconv.export.int8 import SCOPES
    from mmscconv.export.job import IMAGES, IMAGES_INT8

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=Path, required=True, help=f'file to write, *{", *".join(SUFFIXES)}')
    parser.add_argument('--format', choices=FORMATS, help='format to write (default: by the suffix of --out)')
    parser.add_argument(
        '--images', nargs='+', default=[], metavar='PATH', help="images or folders (default: the config's test data)"
    )
    parser.add_argument(
        '--num-images', type=int, metavar='N', help=f'images to use (default: {IMAGES}, with --int8 {IMAGES_INT8})'
    )
    parser.add_argument('--size', metavar='HxW', help='input size of the check (default: of the test pipeline)')
    parser.add_argument('--deploy', action='store_true', help='fold norms into convolutions and SCConvs first')
    parser.add_argument(
        '--custom-op', action='store_true',
        help='write each SCConv as one op, and its library for ONNX Runtime beside OUT as *.so; needs --deploy',
    )  # fmt: skip
    parser.add_argument(
        '--postprocess', action='store_true', help='for detectors: give boxes, scores and labels after NMS'
    )
    parser.add_argument(
        '--int8', nargs='?', const=next(iter(SCOPES)), choices=SCOPES,
        help='also write a classifier statically quantized, as OUT.int8.onnx: '
        + '; '.join(f'{scope}, {description}' for scope, description in SCOPES.items()),
    )  # fmt: skip
    parser.add_argument('--calibration', type=int, default=100, metavar='N', help='images to calibrate INT8 on')
    add_config_arguments(parser)
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()

    from mmscconv.engine.cli import config_of
    from mmscconv.export.job import ExportJob

    if args.calibration < 1 or (args.num_images is not None and args.num_images < 1):
        raise UserError('--num-images and --calibration must be positive')
    job = ExportJob(
        cfg=config_of(args),
        checkpoint=args.checkpoint,
        out=args.out,
        format=args.format,
        trusted=args.trusted,
        images=args.images,
        count=args.num_images,
        size=args.size and parse_size(args.size),
        deploy=args.deploy,
        custom_op=args.custom_op,
        postprocess=args.postprocess,
        int8=args.int8,
        calibration=args.calibration,
    )
    print('\n'.join(job.run()))


def parse_size(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.split('x'))
    except ValueError as error:
        raise UserError(f'--size must be HxW, for example 800x1344, got {text}') from error
    if min(height, width) < 1:
        raise UserError(f'--size must be positive, got {text}')
    return height, width


if __name__ == '__main__':
    sys.exit(run(main))
