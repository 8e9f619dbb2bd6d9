"""COCO files: read, mended if only one reading makes sense, else refused in one line.

pycocotools and mmdet check little: annotation id 0 means "no match" to the evaluation, a missing ``iscrowd`` is a
KeyError after the first epoch, and a text never equals a number.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscconv.checks.text import decode
from mmscconv.errors import UserError

Entry = dict[str, Any]
Mask = NDArray[np.bool_]

# float32, in which boxes reach the network, tells neighbouring whole numbers apart up to here.
MAX_PIXELS = 2**24
MAX_AREA = 1e10  # pycocotools silently leaves out larger objects
MAX_SHOWN = 80  # characters of a value in a message
MAX_ID = 2**53  # ids pass through float64 in pycocotools


def read_coco(path: str, test: bool = False) -> tuple[Entry, list[str]]:
    """Read a COCO file.

    Args:
        path: Path of the file.
        test: The file is for validation or testing, where an image may stand only once.

    Returns:
        Its content, checked and mended, and one line for each kind of change or omission.

    Raises:
        UserError: Names the file, the entry and the way out.
    """
    content, lines = _parse(path)
    _require_format(content, path)
    images, categories = content['images'], content['categories']
    annotations = content.setdefault('annotations', [])  # a test set may come without
    lines += _read_sizes(images, path)
    lines += _find_repeated_files(images, path, test)
    _require_names(categories, path)
    if annotations:
        _require_annotations(annotations, path)
        _require_listed(annotations, 'category_id', [category['id'] for category in categories], path)
        unlisted = _unlisted_images(annotations, [image['id'] for image in images], path)
        useless = _useless(annotations, images, unlisted, path, lines)
        annotations = content['annotations'] = [a for a, drop in zip(annotations, useless, strict=True) if not drop]
    lines += _fill_flags(annotations, path)
    lines += _number(images, 'image', annotations, 'image_id')
    lines += _number(categories, 'category', annotations, 'category_id')
    lines += _number_annotations(annotations)
    lines += _join_categories(content)
    return content, [f'{path}: {line}' for line in lines]


def classes_read_by_name(content: Mapping[str, Any], classes: Sequence[str], path: str) -> tuple[list[int], list[str]]:
    """Return the category id of each class, in the order of ``classes``, and lines about the file's categories.

    Args:
        content: Content of the file from :func:`read_coco`.
        classes: The data set's class names.
        path: Path of the file.

    Raises:
        UserError: A class is no category of the file.
    """
    ids = {category['name']: category['id'] for category in content['categories']}
    missing = [name for name in classes if name not in ids]
    if missing:
        raise UserError(
            f'{len(missing)} of {len(classes)} classes of the data set are not categories of {path}, first '
            f'{missing[0]!r}: set metainfo.classes in the config; the file has '
            f'{", ".join(map(repr, list(ids)[:5]))}{", ..." if len(ids) > 5 else ""}'
        )
    lines = []
    extra = [name for name in ids if name not in classes]
    if extra:
        lines.append(f'{path}: {len(extra)} categories are not among the classes and are left out, first {extra[0]!r}')
    if [name for name in ids if name in classes] != [*classes]:
        lines.append(f"{path}: its categories stand in another order than the config's classes; they are read by name")
    return [ids[name] for name in classes], lines


def objects_of(content: Mapping[str, Any], category_ids: Sequence[int]) -> int:
    """Return the number of objects of these categories that a training or an evaluation counts."""
    wanted = set(category_ids)
    return sum(a['category_id'] in wanted and not a['iscrowd'] for a in content['annotations'])


def _parse(path: str) -> tuple[Any, list[str]]:
    try:
        text, lines = decode(Path(path).read_bytes(), path)
        return json.loads(text), lines
    except OSError as error:
        raise UserError(f'annotation file cannot be read: {path} ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'annotation file is not JSON: {path} ({error})') from error


def _require_format(content: Any, path: str) -> None:
    not_coco = 'annotation file is not in COCO format'
    if not isinstance(content, dict):
        raise UserError(f'{not_coco}, it holds a {type(content).__name__}: {path}')
    missing = [key for key in ('images', 'categories') if key not in content]
    if missing:
        raise UserError(f'{not_coco}, it has no {", ".join(missing)}: {path}')
    for key in ('images', 'annotations', 'categories'):
        entries = content.get(key, [])
        if not isinstance(entries, list):
            raise UserError(f'{not_coco}, its {key} are a {type(entries).__name__}, not a list: {path}')
        if not set(map(type, entries)) <= {dict}:
            place = next(i for i, entry in enumerate(entries) if not isinstance(entry, dict))
            raise UserError(f'{not_coco}, {key}[{place}] is a {type(entries[place]).__name__}, not a dict: {path}')


def _read_sizes(images: Sequence[Entry], path: str) -> Iterator[str]:
    """Check the images; bring widths and heights that are texts or fractions to whole numbers."""
    mended = 0
    for image in images:
        if not {'id', 'file_name', 'width', 'height'} <= image.keys():
            raise UserError(f'image {image.get("id")} lacks id, file_name, width or height: {path}')
        if not isinstance(image['file_name'], str) or not image['file_name']:
            raise UserError(
                f'image {_shown(image["id"])} has file_name {_shown(image["file_name"])}, which is not a name: {path}'
            )
        for key in ('width', 'height'):
            value = image[key]
            if type(value) is not int:
                image[key] = _whole_number(value)
                mended += 1
            if not 0 < image[key] <= MAX_PIXELS:
                place = f'image {_shown(image["id"])} ({image["file_name"]}) has {key} {_shown(value)}'
                raise UserError(f'{place}, which is not a number of pixels: {path}')
    _require_ids(images, 'image', path)
    if mended:
        yield f'{mended} widths and heights of images are not whole numbers, but texts or fractions; read as numbers'


def _find_repeated_files(images: Sequence[Entry], path: str, test: bool) -> Iterator[str]:
    counts = Counter(image['file_name'] for image in images)
    twice = [name for name, count in counts.items() if count > 1]
    if twice and test:
        ids = [_shown(image['id']) for image in images if image['file_name'] == twice[0]]
        raise UserError(
            f'file_name {_shown(twice[0])} stands under two image ids, {ids[0]} and {ids[1]}, whose objects would be '
            f'counted twice, or missed under one of them: join them in {path}'
        )
    if twice:
        yield (
            f'{len(twice)} files stand under several image ids and are learnt from once for each, '
            f'first {_shown(twice[0])}'
        )


def _whole_number(value: Any) -> int:
    """Return a number or its text as an integer, 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return 0
    return int(number) if isfinite(number) and number.is_integer() else 0


def _require_names(categories: Sequence[Entry], path: str) -> None:
    for category in categories:
        if 'id' not in category:
            raise UserError(f'category {_shown(category.get("name"))} has no id: {path}')
        name = category.get('name')
        if not isinstance(name, str) or not name.strip():
            naming = f'the name {_shown(name)}' if 'name' in category else 'no name'
            raise UserError(f'category {_shown(category["id"])} has {naming}: {path} (give it the name of its class)')
    _require_ids(categories, 'category', path)


def _require_ids(entries: Sequence[Entry], what: str, path: str) -> None:
    ids = [entry['id'] for entry in entries]
    for value in ids:
        if not isinstance(value, str) and not (_is_number(value) and value == value):
            raise UserError(f'{what} has id {_shown(value)}, which is neither number nor text: {path}')
    _require_unique(ids, what, path)


def _require_unique(ids: Sequence[Any], what: str, path: str) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[Any] = set()
    for i in ids:
        if i in seen:
            raise UserError(f'{what} id {i} stands twice: {path}')
        seen.add(i)


def _require_annotations(annotations: Sequence[Entry], path: str) -> None:
    """Check each annotation without looking at the others."""
    try:
        # No tuples or arrays per annotation: with millions of objects, they trigger the garbage collector.
        boxes = [a['bbox'] for a in annotations]
        numbers = set(map(type, chain.from_iterable(boxes))) | {type(a['area']) for a in annotations}
        keys = {type(a['image_id']) for a in annotations} | {type(a['category_id']) for a in annotations}
        if not (
            set(map(type, boxes)) == {list}
            and set(map(len, boxes)) == {4}
            and numbers <= {int, float}
            and keys <= {int, float, str}
        ):
            raise TypeError('values of other types')
        values, area = _boxes(annotations), _areas(annotations)
    except (KeyError, OverflowError, TypeError) as error:
        raise UserError(_format_problem(annotations, path)) from error
    for sound, problem in (
        (np.isfinite(values).all(1) & np.isfinite(area), 'must be finite'),
        ((abs(values) <= MAX_PIXELS).all(1) & (abs(area) <= MAX_AREA), 'is larger than any image'),
    ):
        if not sound.all():
            bad = annotations[int(np.argmin(sound))]
            raise UserError(f'{_name(bad)} has bbox {bad["bbox"]} and area {bad["area"]}, which {problem}: {path}')
    _require_unique([a['id'] for a in annotations if isinstance(a.get('id'), int | float | str)], 'annotation', path)


def _boxes(annotations: Sequence[Entry]) -> NDArray[np.float64]:
    return np.fromiter(chain.from_iterable(map(itemgetter('bbox'), annotations)), float).reshape(-1, 4)


def _areas(annotations: Sequence[Entry]) -> NDArray[np.float64]:
    return np.fromiter(map(itemgetter('area'), annotations), float)


def _format_problem(annotations: Sequence[Entry], path: str) -> str:
    """Return the line about the first annotation whose values cannot be read."""
    for place, annotation in enumerate(annotations):
        name, box = _name(annotation, place), annotation.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            return f'{name} has bbox {_shown(box)}, not four numbers x, y, width, height: {path}'
        lacking = [key for key in ('image_id', 'category_id', 'area') if key not in annotation]
        if lacking:
            advice = ' (width times height of its box, if there are no masks)' if lacking == ['area'] else ''
            return f'{name} has no {", ".join(lacking)}: {path}{advice}'
        if not _is_number(annotation['area']):
            return f'{name} has area {_shown(annotation["area"])}, which is not a number: {path}'
        for key in ('image_id', 'category_id'):
            if not (_is_number(annotation[key]) or isinstance(annotation[key], str)):
                return f'{name} has {key} {_shown(annotation[key])}, which is neither number nor text: {path}'
        if max(map(abs, (*box, annotation['area']))) > MAX_AREA:
            return f'{name} has a bbox or an area that is larger than any image: {path}'
    raise AssertionError('an annotation was refused for a reason that is not described')


def _name(annotation: Mapping[str, Any], place: int | None = None) -> str:
    if 'id' not in annotation and place is not None:
        return f'annotation number {place + 1}'
    return f'annotation {_shown(annotation.get("id"))}'


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}...'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_listed(annotations: Sequence[Entry], key: str, ids: Sequence[Any], path: str) -> None:
    listed = set(ids)
    bad = next((a for a in annotations if a[key] not in listed), None)
    if bad is not None:
        _refuse_other_type(bad, key, ids, path)
        raise UserError(f'{_name(bad)} has {key} {_shown(bad[key])}, which is not listed: {path}')


def _unlisted_images(annotations: Sequence[Entry], ids: Sequence[Any], path: str) -> Mask:
    listed = set(ids)
    unlisted = np.fromiter((a['image_id'] not in listed for a in annotations), bool, len(annotations))
    if unlisted.any():
        _refuse_other_type(annotations[int(np.argmax(unlisted))], 'image_id', ids, path)
    return unlisted


def _refuse_other_type(annotation: Entry, key: str, ids: Sequence[Any], path: str) -> None:
    """Raise UserError if the id is listed, but as a number in place of a text or the other way round."""
    value = annotation[key]
    other = next((i for i in ids if str(i) == str(value)), None)
    if other is not None:
        kind, listed = ('a text', 'a number') if isinstance(value, str) else ('a number', 'a text')
        raise UserError(
            f'{_name(annotation)} has {key} {_shown(value)}, {kind}, but the list has {_shown(other)}, {listed}: '
            f'{path} (write both as numbers)'
        )


def _useless(
    annotations: Sequence[Entry], images: Sequence[Entry], unlisted: Mask, path: str, lines: list[str]
) -> Mask:
    """Return the annotations that neither training nor evaluation can use, and add lines about them.

    Boxes of less than a pixel, but with a size, stay: mmdet does not train on them, COCO's evaluation counts them.
    """
    places = {image['id']: place for place, image in enumerate(images)}
    sizes = np.array([(image['width'], image['height']) for image in images] + [(0, 0)], float)
    limits = sizes[np.fromiter((places.get(a['image_id'], -1) for a in annotations), int, len(annotations))]
    boxes, area = _boxes(annotations), _areas(annotations)
    empty = (boxes[:, 2:] <= 0).any(1) | (area <= 0)
    small = (boxes[:, 2:] < 1).any(1) & ~empty
    outside = ((boxes[:, :2] + boxes[:, 2:] <= 0) | (boxes[:, :2] >= limits)).any(1) & ~empty & ~small & ~unlisted
    for found, problem in (
        (empty & ~unlisted, 'have a width or height below 1 or no area and are left out'),
        (small & ~unlisted, 'have a width or height below 1 and are left out of the training, not of the evaluation'),
        (outside, 'have a box outside of the image and are left out'),
        (unlisted, 'belong to an image that is not listed and are left out'),
    ):
        if found.any():
            first = annotations[int(np.argmax(found))]
            lines.append(
                f'{found.sum()} of {len(annotations)} annotations {problem}, first {_name(first)} '
                f'with bbox {first["bbox"]} and image_id {first["image_id"]}'
            )
    if (empty | small | outside | unlisted).all():
        raise UserError(f'no annotation can be used, all are empty, outside of their image or of no image: {path}')
    return empty | outside | unlisted


def _fill_flags(annotations: Sequence[Entry], path: str) -> Iterator[str]:
    """Bring ``iscrowd`` and ``ignore`` to 0 and 1; pycocotools knows the first alone, mmdet takes any text for true."""
    missing = ignored = 0
    for annotation in annotations:
        for flag in ('iscrowd', 'ignore'):
            value = annotation.get(flag)
            missing += value is None and flag == 'iscrowd'
            if not (value is None or (isinstance(value, int | float) and value in (0, 1))):
                raise UserError(f'{_name(annotation)} has {flag} {_shown(value)}, which must be 0 or 1: {path}')
            if value is not None or flag == 'iscrowd':
                annotation[flag] = int(value or 0)
        if annotation.get('ignore') and not annotation['iscrowd']:
            annotation['iscrowd'] = 1
            ignored += 1
    if missing:
        yield f'{missing} of {len(annotations)} annotations have no iscrowd; they are read as single objects'
    if ignored:
        yield f'{ignored} of {len(annotations)} annotations are marked "ignore": neither learnt, nor hit or miss'


def _number(entries: Sequence[Entry], what: str, annotations: Sequence[Entry], key: str) -> Iterator[str]:
    """Number images or categories anew, from 1 and in their order, unless all ids are integers of a usual size."""
    odd = next((e['id'] for e in entries if type(e['id']) is not int or abs(e['id']) > MAX_ID), None)
    if odd is None:
        return
    numbers = {entry['id']: number for number, entry in enumerate(entries, 1)}
    for entry in entries:
        entry['id'] = numbers[entry['id']]
    for annotation in annotations:
        annotation[key] = numbers[annotation[key]]
    told = f'{what} ids are not all whole numbers that the evaluation can hold'
    yield f'{told}, first {_shown(odd)}; numbered anew from 1'


def _number_annotations(annotations: Sequence[Entry]) -> Iterator[str]:
    """Number annotations anew, from 1, unless all have a positive integer already."""
    ids = [a.get('id') for a in annotations]
    odd = next((i for i in ids if type(i) is not int or not 0 < i <= MAX_ID), ...)
    if odd is ...:
        return
    for number, annotation in enumerate(annotations, 1):
        annotation['id'] = number
    told = f'annotation ids are not all whole numbers from 1, first {_shown(odd)}'
    yield f'{told}; numbered anew (0 is "no match" to the AP)'


def _join_categories(content: Entry) -> Iterator[str]:
    """Join categories of one name."""
    first: dict[str, int] = {}
    joined: dict[int, int] = {}
    for category in content['categories']:
        joined[category['id']] = first.setdefault(category['name'], category['id'])
    twice = [c['name'] for c in content['categories'] if joined[c['id']] != c['id']]
    if twice:
        content['categories'] = [c for c in content['categories'] if joined[c['id']] == c['id']]
        for annotation in content['annotations']:
            annotation['category_id'] = joined[annotation['category_id']]
        yield f'{len(twice)} categories have the name of another one and are read as the same class, first {twice[0]!r}'
