"""Small annotated data sets in each form, written by lines of their own: the reader under test has no part in them."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CLASSES = ('cat', 'dog', 'fish')
COLOURS = dict(zip(CLASSES, ((230, 40, 40), (40, 230, 40), (40, 40, 230)), strict=True))
SIZE = (64, 48)


def made_objects(count=8, seed=0):
    """Return stem -> [(class, x1, y1, x2, y2)], whole pixels."""
    rng = np.random.default_rng(seed)
    objects = {}
    for i in range(count):
        objects[f'img_{i:02d}'] = [
            (CLASSES[(i + j) % 3], x, y, x + int(rng.integers(14, 26)), y + int(rng.integers(14, 26)))
            for j, (x, y) in enumerate([(3, int(rng.integers(2, 20))), (34, int(rng.integers(2, 20)))])
        ]
    return objects


def write_images(folder, objects, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for stem, boxes in objects.items():
        pixels = rng.integers(90, 130, (size[1], size[0], 3)).astype(np.uint8)
        for label, x1, y1, x2, y2 in boxes:
            pixels[y1:y2, x1:x2] = COLOURS[label]
        Image.fromarray(pixels).save(folder / f'{stem}.png')


def write_annotation(folder, file_name, boxes, size):
    """Write VOC's file of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = ''.join(
        f'<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
        f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
        for label, x1, y1, x2, y2 in boxes
    )
    (folder / Path(file_name).with_suffix('.xml')).write_text(
        f'<annotation><filename>{file_name}</filename><size><width>{size[0]}</width><height>{size[1]}</height>'
        f'<depth>3</depth></size>{entries}</annotation>'
    )


def write_voc(root, objects, splits=None, size=SIZE):
    write_images(root / 'JPEGImages', objects, size)
    for stem, boxes in objects.items():
        write_annotation(root / 'Annotations', f'{stem}.png', boxes, size)
    for name, stems in (splits or {}).items():
        path = root / 'ImageSets' / 'Main' / f'{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(stems) + '\n')
    return root


def coco_content(objects, size=SIZE, categories=CLASSES, first_id=1, suffix='.png'):
    """Return the content of a COCO file; ``size`` is that of all images, or stem -> size."""
    sizes = size if isinstance(size, dict) else dict.fromkeys(objects, size)
    numbers = {name: i for i, name in enumerate(categories, 1)}
    images = [
        dict(id=i, file_name=f'{stem}{suffix}', width=sizes[stem][0], height=sizes[stem][1])
        for i, stem in enumerate(objects)
    ]
    annotations = [
        dict(image_id=i, category_id=numbers[label], bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
        for i, boxes in enumerate(objects.values())
        for label, x1, y1, x2, y2 in boxes
    ]
    annotations = [dict(annotation, id=first_id + i, iscrowd=0) for i, annotation in enumerate(annotations)]
    return dict(images=images, annotations=annotations, categories=[dict(id=v, name=k) for k, v in numbers.items()])


def write_coco(root, objects, splits, size=SIZE):
    (root / 'annotations').mkdir(parents=True)
    for name, stems in splits.items():
        chosen = {stem: objects[stem] for stem in stems}
        write_images(root / name, chosen, size)
        (root / 'annotations' / f'{name}.json').write_text(json.dumps(coco_content(chosen, size)))
    return root


def write_labels(folder, objects, size=SIZE):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, boxes in objects.items():
        lines = [
            f'{CLASSES.index(label)} {(x1 + x2) / 2 / size[0]:.6f} {(y1 + y2) / 2 / size[1]:.6f} '
            f'{(x2 - x1) / size[0]:.6f} {(y2 - y1) / size[1]:.6f}\n'
            for label, x1, y1, x2, y2 in boxes
        ]
        (folder / f'{stem}.txt').write_text(''.join(lines))


def write_yolo(root, objects, splits, size=SIZE):
    for name, stems in splits.items():
        chosen = {stem: objects[stem] for stem in stems}
        write_images(root / 'images' / name, chosen, size)
        write_labels(root / 'labels' / name, chosen, size)
    settings = dict(path='.', names=dict(enumerate(CLASSES)), **{name: f'images/{name}' for name in splits})
    (root / 'data.yaml').write_text(yaml.safe_dump(settings))
    return root


def boxes_of(path):
    """Return image stem -> sorted [(class, x1, y1, x2, y2)] of a COCO file."""
    content = json.loads(Path(path).read_text())
    names = {c['id']: c['name'] for c in content['categories']}
    found = {image['id']: (Path(image['file_name']).stem, []) for image in content['images']}
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        found[annotation['image_id']][1].append((names[annotation['category_id']], x, y, x + width, y + height))
    return {stem: sorted(boxes) for stem, boxes in found.values()}
