"""Names the broken annotation, before a training starts; a COCO file is not read twice where all is well."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mmscconv.checks.files import DATA_ADVICE, datasets, join
from mmscconv.errors import UserError, warn

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def find_broken_annotation(cfg: Mapping[str, Any]) -> str | None:
    """Return one line that names the first broken COCO annotation of the config's datasets, or None."""
    for stage in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            path = join(dataset.get('data_root'), dataset.get('ann_file'))
            problem = _format_problem(path) if path.endswith('.json') else None
            if problem:
                return problem
    return None


def _format_problem(path: str) -> str | None:
    try:
        content = json.loads(Path(path).read_bytes())
    except UnicodeDecodeError as error:
        return f'annotation file is not UTF-8: {path} ({error.reason} at byte {error.start})'
    except ValueError as error:
        return f'annotation file is not JSON: {path} ({error})'
    if not isinstance(content, dict):
        return f'annotation file is not in COCO format, it holds a {type(content).__name__}: {path}'
    missing = [key for key in ('images', 'annotations', 'categories') if key not in content]
    if missing:
        return f'annotation file is not in COCO format, it has no {", ".join(missing)}: {path}'
    for image in content['images']:
        if not {'id', 'file_name', 'width', 'height'} <= image.keys():
            return f'image {image.get("id")} lacks id, file_name, width or height: {path}'
    for annotation in content['annotations']:
        name = f'annotation {annotation.get("id")}'
        box = annotation.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
            return f'{name} has bbox {box}, not four numbers x, y, width, height: {path}'
        lacking = [key for key in ('id', 'image_id', 'category_id', 'area') if key not in annotation]
        if lacking:
            return f'{name} has no {", ".join(lacking)}: {path}'
    return None


@contextmanager
def coco_files_checked(cfg: Mapping[str, Any]) -> Iterator[None]:
    """Check each COCO file that mmdet's data sets read, as soon as it is read.

    Raises:
        UserError: In this context, from building a data set. What mmdet leaves out by
            itself, such as the few boxes without area in COCO, is a warning.
    """
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO

    folders = {}
    for stage in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            ann_file, prefix = dataset.get('ann_file'), dataset.get('data_prefix')
            if ann_file and isinstance(prefix, Mapping) and 'img' in prefix:
                root = dataset.get('data_root')
                folders[os.path.normpath(join(root, ann_file))] = join(root, prefix['img'])

    class CheckedCOCO(COCO):
        """Reads a file as mmdet does, and checks what it has read."""

        def __init__(self, annotation_file: str | None = None) -> None:
            super().__init__(annotation_file)
            self.path = annotation_file
            if annotation_file:
                check_coco(self.dataset, annotation_file, folders.get(os.path.normpath(annotation_file)))

        def get_cat_ids(self, cat_names: Sequence[str] = (), *args: Any, **kwargs: Any) -> list[int]:
            check_classes([c['name'] for c in self.dataset['categories']], cat_names, self.path)
            return super().get_cat_ids(cat_names, *args, **kwargs)

    before = CocoDataset.COCOAPI
    CocoDataset.COCOAPI = CheckedCOCO
    try:
        yield
    finally:
        CocoDataset.COCOAPI = before


def check_classes(have: Sequence[str], wanted: Sequence[str], path: str | None) -> None:
    """Raise UserError if a class is not among the file's: mmdet would number the classes after it wrongly."""
    if isinstance(wanted, str):
        wanted = [wanted]
    missing = [name for name in wanted if name not in have]
    if missing:
        raise UserError(
            f'{len(missing)} of {len(wanted)} classes of the data set are no categories of {path}, first '
            f'{missing[0]!r}: set metainfo.classes in the config; the file has {", ".join(map(repr, have[:5]))}'
            f'{", ..." if len(have) > 5 else ""}'
        )
    extra = [name for name in have if name not in wanted]
    if wanted and extra:
        warn(f'{path}: {len(extra)} categories are not among the classes and are left out, first {extra[0]!r}')


def check_coco(content: Mapping[str, Any], path: str, folder: str | None) -> None:
    """Check the content of a COCO file, and that its images are in ``folder``.

    Raises:
        UserError: An id that stands twice, a coordinate that is no finite number, a
            category that is not listed, an image that is not there.
    """
    missing = [key for key in ('images', 'categories') if key not in content]
    if missing:
        raise UserError(f'annotation file is not in COCO format, it has no {", ".join(missing)}: {path}')
    images, annotations = content['images'], content.get('annotations', [])  # a test set may come without
    _require_unique([image['id'] for image in images], 'image', path)
    if folder:
        require_images([image['file_name'] for image in images], folder, path)
    if not annotations:
        return
    try:
        # No tuples or arrays per annotation: with millions of objects around, making them wakes the garbage collector.
        ids, image_ids, category_ids = ([a[key] for a in annotations] for key in ('id', 'image_id', 'category_id'))
        boxes = np.fromiter(chain.from_iterable(map(itemgetter('bbox'), annotations)), float).reshape(-1, 4)
        area = np.fromiter((annotation['area'] for annotation in annotations), float)
        if len(boxes) != len(ids):
            raise ValueError('boxes of other lengths')
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(_format_problem(path) or f'annotation file cannot be read: {path} ({error})') from error
    _require_unique(ids, 'annotation', path)
    finite = np.isfinite(boxes).all(1) & np.isfinite(area)
    if not finite.all():
        bad = annotations[int(np.argmin(finite))]
        raise UserError(
            f'annotation {bad["id"]} has bbox {bad["bbox"]} and area {bad["area"]}, which must be finite: {path}'
        )
    categories = {category['id'] for category in content['categories']}
    if not categories.issuperset(category_ids):
        bad = next(a for a in annotations if a['category_id'] not in categories)
        raise UserError(f'annotation {bad["id"]} has category_id {bad["category_id"]}, which is not listed: {path}')

    places = {image['id']: place for place, image in enumerate(images)}
    sizes = np.array([(image['width'], image['height']) for image in images] + [(0, 0)], float)
    place = np.fromiter((places.get(image_id, -1) for image_id in image_ids), int, len(ids))
    limits, unlisted = sizes[place], place < 0
    small = (boxes[:, 2:] < 1).any(1) | (area <= 0)  # mmdet leaves out what is narrower than a pixel
    outside = ((boxes[:, :2] + boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits)).any(1) & ~small & ~unlisted
    for found, what in (
        (small, 'have a width or height below 1 or no area'),
        (outside, 'have a box outside of the image'),
        (unlisted, 'belong to an image that is not listed'),
    ):
        if found.any():
            first = annotations[int(np.argmax(found))]
            warn(
                f'{path}: {found.sum()} of {len(ids)} annotations {what} and are left out, first annotation '
                f'{first["id"]} with bbox {first["bbox"]} and image_id {first["image_id"]}'
            )
    if (small | outside | unlisted).all():
        raise UserError(f'no annotation can be used, all are empty, outside of their image or of no image: {path}')


def _require_unique(ids: Sequence[Any], what: str, path: str) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[Any] = set()
    for i in ids:
        if i in seen:
            raise UserError(f'{what} id {i} stands twice: {path}')
        seen.add(i)


def require_images(names: Sequence[str], folder: str, path: str) -> None:
    """Raise UserError if files are not in ``folder``: listing folders is cheap where asking for each file is not."""
    if '://' in folder:
        return
    listed: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in listed:
            inner = Path(folder) / parent
            listed[parent] = set(os.listdir(inner)) if inner.is_dir() else set()  # noqa: PTH208, names alone
        if base not in listed[parent]:
            missing.append(name)
    if missing:
        raise UserError(
            f'{len(missing)} of {len(names)} images that {path} lists are not there, first '
            f'{Path(folder) / missing[0]} ({DATA_ADVICE})'
        )


def check_voc(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Check the XML files of the config's VOC-style data sets; mmdet reads them again, from memory then.

    Raises:
        UserError: Names the first file that is broken or missing, or whose image is.
    """
    from mmdet.registry import DATASETS

    for stage in stages:
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            path, prefix = join(dataset.get('data_root'), dataset.get('ann_file')), dataset.get('data_prefix')
            if path.endswith('.txt') and isinstance(prefix, Mapping) and 'sub_data_root' in prefix:
                kind = DATASETS.get(dataset['type'])
                classes = (dataset.get('metainfo') or {}).get('classes') or getattr(kind, 'METAINFO', {}).get('classes')
                if classes is not None:  # else the registry or the data set says what is wrong, once it is built
                    _check_voc_list(path, join(dataset.get('data_root'), prefix['sub_data_root']), classes, dataset)


def _check_voc_list(path: str, root: str, classes: Sequence[str], dataset: Mapping[str, Any]) -> None:
    try:
        names = Path(path).read_text(encoding='utf-8').split()
    except UnicodeDecodeError as error:
        raise UserError(f'annotation file is not UTF-8: {path} ({error.reason} at byte {error.start})') from error
    folder = Path(root) / dataset.get('ann_subdir', 'Annotations')
    require_images([f'{name}.jpg' for name in names], str(Path(root) / dataset.get('img_subdir', 'JPEGImages')), path)
    unknown: dict[str, tuple[int, Path]] = {}
    flat, known = [], 0
    for name in names:
        file = folder / f'{name}.xml'
        for label, box in _voc_objects(file, path):
            if label not in classes:
                unknown[label] = unknown.get(label, (0, file))[0] + 1, unknown.get(label, (0, file))[1]
                continue
            known += 1
            if box[2] <= box[0] or box[3] <= box[1]:
                flat.append((file, box))
    for label, (count, file) in unknown.items():
        warn(f'{path}: {count} objects are named {label!r}, which is no class, and are left out, first in {file}')
    if flat:
        warn(f'{path}: {len(flat)} boxes have no width or height, first {flat[0][1]} in {flat[0][0]}')
    if unknown and not known:
        raise UserError(f'no object is of a class of the data set: {path} (set metainfo.classes in the config)')


def _voc_objects(file: Path, list_file: str) -> list[tuple[str, list[float]]]:
    """Return (class, (xmin, ymin, xmax, ymax)) of each object of an XML file."""
    try:
        tree = ElementTree.parse(file)
    except FileNotFoundError as error:
        raise UserError(f'annotation {file} is not there, but {list_file} lists it') from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f'annotation is not XML: {file} ({error})') from error
    objects = []
    for entry in tree.iter('object'):
        label, box = entry.findtext('name'), entry.find('bndbox')
        if label is None or box is None:
            raise UserError(f'annotation has an object without {"name" if label is None else "bndbox"}: {file}')
        values = []
        for side in SIDES:
            text = box.findtext(side)
            try:
                values.append(float(text or ''))
            except ValueError:
                values.append(float('nan'))
            if not isfinite(values[-1]):
                raise UserError(f'annotation has {side}={text!r} in a box: {file}')
        objects.append((label, values))
    return objects
