"""Photographs and scanned digits that scikit-learn ships, laid out as COCO, VOC and ImageNet are.

An image for a detector is a crop of a photograph with three digits pasted into its left, middle and right third.
The digit ``d`` on the photograph ``p`` is an object of the class ``10 p + d``, and its box is the pasted scan's own.
An image for a classifier is a crop, and its class is the place that it was cut from.
"""

import json

import numpy as np
from PIL import Image

from helpers.annotated import coco_content, write_annotation

PHOTOGRAPHS = ('china.jpg', 'flower.jpg')
SIZES = ((240, 180), (180, 240), (320, 213), (200, 200))  # width and height, in turn
PLACES = 40  # classes of the data set in ImageNet's layout
# Images of each split.
COCO_IMAGES = {'train2017': 12, 'val2017': 6}
VOC_IMAGES = {('VOC2007', 'trainval'): 6, ('VOC2007', 'test'): 5, ('VOC2012', 'trainval'): 4}


def photographs():
    from sklearn.datasets import load_sample_image

    return [load_sample_image(name) for name in PHOTOGRAPHS]


def glyphs():
    """Return scans of each digit as ``[digit] -> [mask]``, cut to their ink."""
    from sklearn.datasets import load_digits

    data = load_digits()
    found = {digit: [] for digit in range(10)}
    for scan, digit in zip(data.images, data.target, strict=True):
        ink = scan > 4
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        found[int(digit)].append(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return found


def scenes(count, seed):
    """Yield ``count`` images: (pixels, [(class number, x1, y1, x2, y2)])."""
    rng = np.random.default_rng(seed)
    scans, sources = glyphs(), photographs()
    for i in range(count):
        number = i % len(sources)
        source, (width, height) = sources[number], SIZES[i % len(SIZES)]
        top, left = rng.integers(source.shape[0] - height + 1), rng.integers(source.shape[1] - width + 1)
        pixels = source[top : top + height, left : left + width].copy()
        boxes = []
        for third in range(3):
            digit, scale = int(rng.integers(10)), int(rng.integers(3, 7))
            of_digit = scans[digit]
            mask = np.kron(of_digit[int(rng.integers(len(of_digit)))], np.ones((scale, scale), bool))
            h, w = mask.shape
            x = third * (width // 3) + int(rng.integers(width // 3 - w + 1))
            y = int(rng.integers(height - h + 1))
            pixels[y : y + h, x : x + w][mask] = (255, 255, 0)
            boxes.append((10 * number + digit, x, y, x + w, y + h))
        yield pixels, boxes


def write_scenes(folder, names, seed, classes):
    """Write an image ``folder/name.jpg`` for each name; return its sizes and objects by name."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes, objects = {}, {}
    for name, (pixels, boxes) in zip(names, scenes(len(names), seed), strict=True):
        Image.fromarray(pixels).save(folder / f'{name}.jpg', quality=95)
        sizes[name] = pixels.shape[1::-1]
        objects[name] = [(classes[number], *corners) for number, *corners in boxes]
    return sizes, objects


def write_coco(root, classes):
    (root / 'annotations').mkdir(parents=True)
    for seed, (split, count) in enumerate(COCO_IMAGES.items()):
        names = [f'{1000 * seed + i:012d}' for i in range(1, count + 1)]
        sizes, objects = write_scenes(root / split, names, seed, classes)
        content = coco_content(objects, sizes, classes, suffix='.jpg')
        (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def write_voc(root, classes):
    for seed, ((year, split), count) in enumerate(VOC_IMAGES.items(), len(COCO_IMAGES)):
        names = [f'{1000 * seed + i:06d}' for i in range(1, count + 1)]
        sizes, objects = write_scenes(root / year / 'JPEGImages', names, seed, classes)
        for name in names:
            write_annotation(root / year / 'Annotations', f'{name}.jpg', objects[name], sizes[name])
        path = root / year / 'ImageSets' / 'Main' / f'{split}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(names) + '\n')


def write_imagenet(root):
    """Write one crop of each place for training, and one of the place a few pixels on for validation."""
    sources = photographs()
    for place in range(PLACES):
        source, index = sources[place % len(sources)], place // len(sources)
        top, left = 70 * (index // 5), 120 * (index % 5)
        for step, split in enumerate(('train', 'val')):
            folder = root / split / f'n{place:08d}'
            folder.mkdir(parents=True)
            crop = source[top + 5 * step : top + 5 * step + 160, left + 5 * step : left + 5 * step + 150]
            Image.fromarray(crop).save(folder / f'n{place:08d}_{step}.JPEG', quality=95)


def write_data(root, coco_classes, voc_classes):
    """Write coco/, VOCdevkit/ and imagenet_mini/, each in its published layout."""
    write_coco(root / 'coco', coco_classes)
    write_voc(root / 'VOCdevkit', voc_classes)
    write_imagenet(root / 'imagenet_mini')
    return root
