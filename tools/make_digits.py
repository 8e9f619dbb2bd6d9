#!/usr/bin/env python
"""Make a small COCO-format detection set from scikit-learn's handwritten digits (real scans, no download)."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.errors import UserError, run
from mmscconv.storage.disk import replacing

CANVAS = 128
SIZES = (24, 64)  # pixels of a pasted 8x8 scan
MOST_DIGITS = 5
TRIES = 30  # attempts to find free places for an image's digits
INK = 64  # grey value from which a pixel counts for the box
TEST_SHARE = 0.2  # of the scans, so that no scan of val is seen in training


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='data/digits', help='folder to write (default: %(default)s)')
    parser.add_argument('--train', type=int, default=600, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=100, help='validation images (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError(
            "scikit-learn is missing: pip install --no-build-isolation '.[demo]' (in the checkout)"
        ) from error
    import numpy as np

    scans = load_digits()
    split = train_test_split(
        scans.images, scans.target, test_size=TEST_SHARE, random_state=args.seed, stratify=scans.target
    )
    out = Path(args.out)
    annotations = out / 'annotations'
    try:
        annotations.mkdir(parents=True, exist_ok=True)
        for name in ('train', 'val'):  # of other images, if this run is stopped
            (annotations / f'{name}.json').unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'cannot write to {out}: {error.strerror} (pass --out)') from error
    for i, (name, count) in enumerate((('train', args.train), ('val', args.val))):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        content = write_images(folder, split[i], split[i + 2], count, np.random.default_rng([args.seed, i]))
        with replacing(annotations / f'{name}.json') as path:
            path.write_text(json.dumps(content))
    print(f'{args.train} + {args.val} images in {out}')


def write_images(folder, scans, labels, count, rng):  # noqa: ANN001, ANN201, numpy is imported late
    """Write ``count`` canvases as PNG and return their COCO annotations."""
    import cv2
    import numpy as np

    images, annotations = [], []
    for image_id in range(count):
        canvas = np.zeros((CANVAS, CANVAS), np.uint8)
        taken = np.zeros((CANVAS, CANVAS), bool)
        missing = rng.integers(1, MOST_DIGITS + 1)
        for _ in range(TRIES):
            if not missing:
                break
            scan, size = rng.integers(len(scans)), int(rng.integers(*SIZES))
            top, left = rng.integers(0, CANVAS - size, 2)
            place = slice(top, top + size), slice(left, left + size)
            if taken[place].any():
                continue
            missing -= 1
            patch = cv2.resize(scans[scan] / 16 * 255, (size, size), interpolation=cv2.INTER_CUBIC)
            canvas[place] = patch.clip(0, 255)
            taken[place] = True
            rows, columns = np.nonzero(canvas[place] > INK)
            x, y = left + columns.min(), top + rows.min()
            width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(labels[scan]),
                    'bbox': [int(v) for v in (x, y, width, height)],
                    'area': int(width * height),
                    'iscrowd': 0,
                }
            )
        name = f'{image_id:06d}.png'
        if not cv2.imwrite(str(folder / name), canvas):
            raise UserError(f'cannot write {folder / name}')
        images.append({'id': image_id, 'file_name': name, 'width': CANVAS, 'height': CANVAS})
    categories = [{'id': digit, 'name': str(digit)} for digit in range(10)]
    return {'images': images, 'annotations': annotations, 'categories': categories}


if __name__ == '__main__':
    sys.exit(run(main))
