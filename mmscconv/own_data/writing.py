"""COCO files of the splits, all with the same categories."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmscconv.own_data.records import AnnotatedImage, Splits
from mmscconv.storage.disk import replacing


def common_folder(splits: Splits) -> Path:
    """Return the folder below which all images lie."""
    folders = [str(image.path.absolute().parent) for images in splits.values() for image in images]
    return Path(os.path.commonpath(folders))


def write_splits(splits: Splits, classes: Sequence[str], folder: Path, image_root: Path) -> None:
    """Write ``<split>.json`` for each split into ``folder``; images are named from ``image_root`` on."""
    for name, images in splits.items():
        with replacing(folder / f'{name}.json') as path:
            path.write_text(json.dumps(coco_content(images, classes, image_root)), encoding='utf-8')


def coco_content(images: Sequence[AnnotatedImage], classes: Sequence[str], image_root: Path) -> dict[str, Any]:
    """Return the content of a COCO file; categories and ids count from 1, as id 0 means "no match" to pycocotools."""
    numbers = {name: i for i, name in enumerate(classes, 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        name = image.path.absolute().relative_to(image_root).as_posix()
        entries.append({'id': image_id, 'file_name': name, 'width': image.size[0], 'height': image.size[1]})
        for box in image.boxes:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': numbers[box.label],
                    'bbox': [box.corners[0], box.corners[1], box.width, box.height],
                    'area': box.width * box.height,
                    'iscrowd': int(box.crowd),
                }
            )
    categories = [{'id': number, 'name': name} for name, number in numbers.items()]
    return {'images': entries, 'annotations': annotations, 'categories': categories}
