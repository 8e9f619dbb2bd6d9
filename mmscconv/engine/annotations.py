"""Finds the broken annotation once loading has failed: nothing is read twice where all is well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmscconv.engine.preflight import datasets, join


def find_broken_annotation(cfg: Mapping[str, Any]) -> str | None:
    """Return one line that names the first broken annotation of the config's datasets, or None."""
    for stage in ('train', 'val', 'test'):
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            path = join(dataset.get('data_root'), dataset.get('ann_file'))
            if path.endswith('.json'):
                problem = _coco_problem(path)
            elif path.endswith('.txt') and 'sub_data_root' in (dataset.get('data_prefix') or {}):
                problem = _voc_problem(path, join(dataset.get('data_root'), dataset['data_prefix']['sub_data_root']))
            else:
                problem = None
            if problem:
                return problem
    return None


def _coco_problem(path: str) -> str | None:
    try:
        content = json.loads(Path(path).read_bytes())
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
    images = {image['id'] for image in content['images']}
    for annotation in content['annotations']:
        name = f'annotation {annotation.get("id")}'
        box = annotation.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)):
            return f'{name} has bbox {box}, not four numbers x, y, width, height: {path}'
        lacking = [key for key in ('id', 'image_id', 'category_id', 'area') if key not in annotation]
        if lacking:
            return f'{name} has no {", ".join(lacking)}: {path}'
        if annotation['image_id'] not in images:
            return f'{name} belongs to image {annotation["image_id"]}, which is not listed: {path}'
    return None


def _voc_problem(list_file: str, root: str) -> str | None:
    for name in Path(list_file).read_text().split():
        path = Path(root) / 'Annotations' / f'{name}.xml'
        try:
            tree = ElementTree.parse(path)
        except FileNotFoundError:
            return f'annotation {path} is not there, but {list_file} lists it'
        except ElementTree.ParseError as error:
            return f'annotation is not XML: {path} ({error})'
        for box in tree.iter('bndbox'):
            for side in ('xmin', 'ymin', 'xmax', 'ymax'):
                text = box.findtext(side)
                try:
                    float(text or '')
                except ValueError:
                    return f'annotation has {side}={text!r} in a box: {path}'
        if tree.find('object') is not None and tree.find('object/bndbox') is None:
            return f'annotation has an object without bndbox: {path}'
    return None
