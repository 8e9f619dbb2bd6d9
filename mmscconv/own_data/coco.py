"""COCO: one JSON file, or one for each split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from globox import BoundingBox, BoxFormat

from mmscconv.errors import UserError
from mmscconv.own_data.boxes import read_box
from mmscconv.own_data.image_list import ImageIndex, measured, walk
from mmscconv.own_data.path_words import split_of
from mmscconv.own_data.records import Account, AnnotatedImage, DataSet
from mmscconv.own_data.values import as_integer, as_number

PARTS = ('images', 'annotations', 'categories')
MOST_FILES = 50  # more JSON files than splits can have: those of another format, one for each image
CORNERS = 4

Content = Mapping[str, Any]


def find_coco(folder: Path, account: Account) -> dict[Path, Content]:
    """Return the files below ``folder`` that have COCO's three lists, with their content.

    Raises:
        UserError: A file is not JSON, and has a name of COCO's or may be a split of the COCO files that are there.
    """
    files = list(walk(folder, ('.json',)))
    if len(files) > MOST_FILES:
        account.add('JSON files, more than COCO has splits: not read, pass the one that is meant', files[0], len(files))
        return {}
    found: dict[Path, Content] = {}
    damaged: dict[Path, Exception] = {}
    for file in files:
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            damaged[file] = error
            continue
        if isinstance(content, dict) and all(part in content for part in PARTS):
            found[file] = content
    for file, reason in damaged.items():
        if found or file.name.startswith('instances') or '.coco.' in file.name:
            raise UserError(
                f'annotation file is not JSON: {file} ({reason}; restore the file, or take it out of the folder)'
            ) from reason
        account.add('JSON files that cannot be read: left out', file)
    boxes = {file: content for file, content in found.items() if file.name.startswith('instances')}
    return boxes or found  # COCO's own folder has keypoints besides


def read_coco_file(file: Path) -> dict[Path, Content]:
    """Return file name -> content of one file.

    Raises:
        UserError: The file is not JSON, or lacks one of COCO's three lists.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'annotation file is not JSON: {file} ({error})') from error
    missing = [part for part in PARTS if not isinstance(content, dict) or part not in content]
    if missing:
        raise UserError(f'annotation file is not in COCO format, it has no {", ".join(missing)}: {file}')
    return {file: content}


def read_coco(files: Mapping[Path, Content], index: ImageIndex, account: Account) -> DataSet:
    """Read COCO files; categories are told apart by name, so each file may number them in its own way.

    Raises:
        UserError: An entry that should be a list is not one, two files of one split, categories without a name
            or with the same one, image ids that stand twice, two images for one name.
    """
    splits: dict[str, list[AnnotatedImage]] = {}
    owner: dict[str, Path] = {}
    names: dict[str, list[str]] = {}
    for file, content in files.items():
        for part in PARTS:
            if not isinstance(content[part], list):
                raise UserError(f'{part} is a {type(content[part]).__name__}, not a list: {file}')
        split = split_of([*_folders(file, index), file.stem])
        if split in owner:
            raise UserError(
                f'{owner[split]} and {file} may both be the {split or "only"} set: '
                'pass the one that is meant, or a folder with one file for each split'
            )
        owner[split] = file
        categories = _categories(content['categories'], file)
        names[split] = list(categories.values())
        splits[split] = _images(content, categories, file, index, account)
    order = [split for split in ('train', '', 'val', 'test') if split in names]
    classes = list(dict.fromkeys(name for split in order for name in names[split]))
    return DataSet(f'COCO, {len(files)} JSON file{"s" * (len(files) > 1)}', classes, splits)


def _folders(file: Path, index: ImageIndex) -> Sequence[str]:
    return file.relative_to(index.folder).parts[:-1] if file.is_relative_to(index.folder) else ()


def _categories(categories: Sequence[Any], file: Path) -> dict[Any, str]:
    """Return id -> name, sorted by id."""
    found: dict[Any, str] = {}
    for category in categories:
        number = _key(category.get('id')) if isinstance(category, dict) else None
        name = category.get('name') if isinstance(category, dict) else None
        if number is None or not isinstance(name, str) or not name.strip():
            raise UserError(f'category without an id or a name: {file} ({category!r:.80})')
        if number in found or name.strip() in found.values():
            raise UserError(f'two categories have the id {number!r} or the name {name!r}: rename one in {file}')
        found[number] = name.strip()
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _images(
    content: Content, categories: Mapping[Any, str], file: Path, index: ImageIndex, account: Account
) -> list[AnnotatedImage]:
    images: dict[Any, AnnotatedImage | None] = {}
    names = [entry['file_name'] for entry in content['images'] if isinstance(entry, dict) and 'file_name' in entry]
    paths = index.by_names([name for name in names if isinstance(name, str)], file)
    listed: dict[Path, AnnotatedImage] = {}
    joined: set[int] = set()
    for entry in content['images']:
        number = _key(entry.get('id')) if isinstance(entry, dict) else None
        name = entry.get('file_name') if isinstance(entry, dict) else None
        if number is None or not isinstance(name, str):
            account.add('images without an id or a file_name: left out', f'{entry!r:.80} in {file}')
            continue
        if number in images:
            raise UserError(f'image id {number!r} stands twice: {file}')
        images[number] = None
        path = paths.get(name)
        if path is None:
            account.add('images that are not there: left out', f'{name} of {file}')
            continue
        size = measured(path, (as_integer(entry.get('width')), as_integer(entry.get('height'))), account)
        if size and path in listed:
            account.add('entries of an image that is listed before: their objects are joined', f'{name} of {file}')
            images[number] = listed[path]
            joined.add(id(listed[path]))
        elif size:
            images[number] = listed[path] = AnnotatedImage(path, size)
    for entry in content['annotations']:
        where = f'annotation {entry.get("id") if isinstance(entry, dict) else entry!r:.80} of {file}'
        if not isinstance(entry, dict):
            account.add('annotations that are not objects: left out', where)
            continue
        number = _key(entry.get('image_id'))
        if number not in images:
            account.add('annotations of an image that is not listed: left out', where)
            continue
        category = _key(entry.get('category_id'))
        if category not in categories:
            account.add('annotations of a category that is not listed: left out', where)
            continue
        image = images[number]
        if image:
            parse = partial(_box, categories[category], entry.get('bbox'))
            crowd = any(as_integer(entry.get(key)) == 1 or entry.get(key) is True for key in ('iscrowd', 'ignore'))
            box = read_box(parse, image.size, account, where, crowd)
            if box and not (id(image) in joined and box in image.boxes):
                image.boxes.append(box)
    return list(listed.values())


def _box(label: str, values: Any) -> BoundingBox:
    if not isinstance(values, list) or len(values) != CORNERS:
        raise ValueError(f'{values!r} is not a list of four numbers')
    x, y, width, height = map(as_number, values)
    return BoundingBox.create(label=label, coords=(x, y, width, height), box_format=BoxFormat.LTWH)


def _key(value: Any) -> int | str | None:
    """Return an id that is the same for '1', 1 and 1.0; None for other values."""
    number = as_integer(value)
    return number if number is not None else value if isinstance(value, str) and value else None
