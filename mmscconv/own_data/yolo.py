"""YOLO: one text file for each image, and a ``data.yaml`` or a list of class names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import yaml
from globox import BoundingBox

from mmscconv.checks.image_files import SUFFIXES
from mmscconv.errors import UserError
from mmscconv.foreign_errors import flat_message
from mmscconv.own_data.boxes import read_box
from mmscconv.own_data.image_list import ImageIndex, measured, walk
from mmscconv.own_data.path_words import SPLITS, split_of
from mmscconv.own_data.records import Account, AnnotatedImage, Box, DataSet, Size
from mmscconv.own_data.values import as_integer, read_text

CLASS_LISTS = ('classes.txt', 'obj.names', 'classes.names', 'labels.txt', 'predefined_classes.txt')
LISTS = {'train.txt': 'train', 'val.txt': 'val', 'valid.txt': 'val', 'test.txt': 'test'}  # Darknet's
BOX_VALUES, POLYGON_VALUES = 5, 7  # a class and a box; a class and three corners at least
KEYPOINTS = 'kpt_shape'  # of a pose data set: how many keypoints follow each box, and of how many values


def find_yaml(folder: Path) -> Path | None:
    """Return the one YAML file in ``folder`` that names classes, or None.

    Raises:
        UserError: Two of them.
    """
    found = [path for path in walk(folder, ('.yaml', '.yml')) if path.parent == folder and 'names' in _settings(path)]
    if len(found) > 1:
        raise UserError(f'{found[0]} and {found[1]} both name classes: pass the one that is meant')
    return found[0] if found else None


def find_yolo(folder: Path, index: ImageIndex) -> bool:
    """Return True if an image of ``index``, the images below ``folder``, has a label file."""
    return any(_label_file(path) for path in index.paths)


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f'not YAML: {path} ({flat_message(error)})') from error
    return content if isinstance(content, dict) else {}


def read_yolo(folder: Path, settings_file: Path | None, index: ImageIndex, account: Account) -> DataSet:
    """Read label files below ``folder``, with the classes and the splits of ``settings_file`` if there is one.

    Raises:
        UserError: Classes or paths that cannot be used.
    """
    if settings_file:
        settings = _settings(settings_file)
        classes: list[str] | None = _class_names(settings, settings_file)
        places = {name: settings[name] for name in SPLITS if settings.get(name)}
        paths = {
            name: list(_listed(places, name, settings_file, settings.get('path'), index, account)) for name in places
        }
        found = f'YOLO, {settings_file.name}'
        posed = _pose_values(settings, settings_file)
    else:
        classes = _listed_classes(folder)
        lists = {name: file for file, name in LISTS.items() if (folder / file).is_file()}
        paths = {name: list(_listed(lists, name, folder / lists[name], None, index, account)) for name in lists}
        for path in () if lists else index.paths:
            paths.setdefault(split_of(_inside(path, folder)), []).append(path)
        found = f'YOLO, images and label files{" with lists" if lists else ""}'
        posed = None
    if not any(paths.values()):
        raise UserError(f'no image is in the folders that {settings_file or folder} names')
    files = {path: _label_file(path) for images in paths.values() for path in images}
    _count_orphans(_claimed(files), index, account)
    splits = {
        split: [image for path in images if (image := _read_image(path, files[path], classes, posed, account))]
        for split, images in paths.items()
    }
    data = DataSet(found, classes, splits)
    if classes is None:
        account.add('data set without a list of classes: the numbers of the labels are their names', folder)
        data.classes = sorted(data.labels(), key=int)
    return data


def _class_names(settings: Mapping[str, Any], file: Path) -> list[str]:
    names = settings.get('names')
    if isinstance(names, dict):
        numbers = [as_integer(key) for key in names]
        if sorted(number for number in numbers if number is not None) != list(range(len(names))):
            raise UserError(f'the numbers of names do not run from 0 to {len(names) - 1}: {file}')
        names = [name for _, name in sorted(zip(numbers, names.values(), strict=True), key=lambda pair: pair[0] or 0)]
    if not isinstance(names, list) or not names:
        raise UserError(f'names is not a list of classes: {file}')
    return _checked_classes(names, file, as_integer(settings.get('nc')))


def _listed_classes(folder: Path) -> list[str] | None:
    """Return the classes of the lists below ``folder``; None without a list.

    Raises:
        UserError: Two lists differ. LabelImg writes one into each folder, and may order each in another way.
    """
    lists = [
        (path, _checked_classes(read_text(path).rstrip().splitlines(), path, None))
        for path in walk(folder, CLASS_LISTS)
        if path.name in CLASS_LISTS
    ]
    for path, classes in lists:
        if classes != lists[0][1]:
            raise UserError(
                f'{lists[0][0]} and {path} list other classes or another order, so a number has two meanings: '
                'number the labels of all folders by one list, and remove the other list'
            )
    return lists[0][1] if lists else None


def _checked_classes(names: list[Any], file: Path, count: int | None) -> list[str]:
    if any(isinstance(name, bool) for name in names):
        raise UserError(
            f"YAML takes yes, no, on, off, true and false for truth values: quote such names, as in 'yes', in {file}"
        )
    texts = [str(name).strip() for name in names]
    wrong = [name for name in names if isinstance(name, dict | list) or name is None or not str(name).strip()]
    twice = [name for i, name in enumerate(texts) if name in texts[:i]]
    if wrong or twice:
        raise UserError(f'a class has no name, or two have the same one, {(wrong or twice)[0]!r}: {file}')
    if count is not None and count != len(texts):
        raise UserError(f'nc is {count}, but names has {len(texts)}: correct one of them in {file}')
    return texts


def _listed(
    places: Mapping[str, Any], name: str, file: Path, root: Any, index: ImageIndex, account: Account
) -> Iterator[Path]:
    """Yield the images of a split: of folders, or of text files with one path a line; ``file`` names the places."""
    values = places[name] if isinstance(places[name], list) else [places[name]]
    roots = [file.parent / root, file.parent] if isinstance(root, str) else [file.parent]
    for value in values:
        if not isinstance(value, str):
            raise UserError(f'{name} is not a path: {file} ({value!r:.80})')
        place = _place(value, roots)
        if place is None:
            if name == 'test':  # Roboflow names a test split even if it has exported none
                continue
            raise UserError(f'{name} is not there: {value!r} (correct the path in {file})')
        if place.is_dir():
            yield from walk(place, SUFFIXES)
            continue
        lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
        known = {line: path for line in lines if (path := _place(line, [*roots, place.parent]))}
        known |= index.by_names([line for line in lines if line not in known], place, known.values())
        for line in lines:
            if line in known:
                yield known[line]
            else:
                account.add('images that are not there: left out', f'{line} of {place}')


def _place(value: str, roots: list[Path]) -> Path | None:
    """Return an existing path; Roboflow's begin with '../' and are meant from the YAML file's own folder.

    Raises:
        UserError: Such a path is there as it stands, too, and may be another data set's.
    """
    value = value.replace('\\', '/')
    trimmed = value
    while trimmed.startswith('../'):
        trimmed = trimmed[3:]
    found = [path for text in dict.fromkeys((value, trimmed)) for root in roots if (path := root / text).exists()]
    if found and value != trimmed:
        other = next((path for path in found if path.resolve() != found[0].resolve()), None)
        if other:
            raise UserError(f'{value!r} may be {found[0]} or {other}: write the one that is meant without ".."')
    return found[0] if found else None


def _inside(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts[:-1] if path.is_relative_to(folder) else path.parts[:-1]


def _label_file(image: Path) -> Path | None:
    """Return the label file of an image: beside it, or under 'labels' in place of the last 'images' of its path."""
    candidates = [image.with_suffix('.txt')]
    if 'images' in image.parts[:-1]:
        place = len(image.parts) - 1 - image.parts[::-1].index('images')
        candidates.insert(0, Path(*image.parts[:place], 'labels', *image.parts[place + 1 :]).with_suffix('.txt'))
    candidates.append(image.parent.parent / 'labels' / image.with_suffix('.txt').name)
    return next((path for path in candidates if path.is_file()), None)


def _claimed(files: Mapping[Path, Path | None]) -> dict[Path, Path]:
    """Return label file -> image, of image -> label file.

    Raises:
        UserError: Two images have one label file, as a picture and its copy with the boxes drawn in.
    """
    owners: dict[Path, Path] = {}
    for image, file in files.items():
        if file:
            other = owners.setdefault(file.resolve(), image)
            if other.resolve() != image.resolve():
                raise UserError(
                    f'{file} may belong to {other} or to {image}: '
                    'remove one of them, or name the folder of the images with --images'
                )
    return owners


def _count_orphans(owners: Mapping[Path, Path], index: ImageIndex, account: Account) -> None:
    """Count label files beside those of ``owners`` that belong to no image."""
    stems = {image.stem for image in (*owners.values(), *index.paths)}
    for folder in sorted({file.parent for file in owners}):
        for file in sorted(folder.glob('*.txt')):
            if file.stem not in stems and file.name not in (*CLASS_LISTS, *LISTS) and not file.name.startswith('.'):
                account.add('label files without an image that can be read: left out', file)


def _pose_values(settings: Mapping[str, Any], file: Path) -> int | None:
    """Return the number of values of a line of a pose data set, with its class; None of another data set."""
    shape = settings.get(KEYPOINTS)
    if shape is None:
        return None
    numbers = [as_integer(number) for number in shape] if isinstance(shape, list) else []
    if len(numbers) != 2 or any(number is None or number < 1 for number in numbers):
        raise UserError(f'{KEYPOINTS} is not a list of two numbers: {file} ({shape!r:.80})')
    return BOX_VALUES + (numbers[0] or 0) * (numbers[1] or 0)


def _read_image(
    path: Path, file: Path | None, classes: list[str] | None, posed: int | None, account: Account
) -> AnnotatedImage | None:
    if not path.is_file():
        account.add('images that are not there: left out', path)
        return None
    size = measured(path, (None, None), account)
    if size is None:
        return None
    image = AnnotatedImage(path, size)
    if file is None:
        account.add('images without a label file: taken as images without objects', path)
        return image
    try:
        lines = read_text(file).splitlines()
    except UserError:
        account.add('label files that are not text: left out with their images', file)
        return None
    for number, line in enumerate(lines, 1):
        if line.strip():
            box = _read_line(line, size, classes, posed, account, f'line {number} of {file}')
            if box:
                image.boxes.append(box)
    return image


def _read_line(
    line: str, size: Size, classes: list[str] | None, posed: int | None, account: Account, where: str
) -> Box | None:
    values = line.split()
    if len(values) == posed:
        account.add('keypoints of objects: left out', where)
        values = values[:BOX_VALUES]
    number = as_integer(values[0])
    if number is None or number < 0 or (classes is not None and number >= len(classes)):
        account.add('objects of a class that is not listed: left out', where)
        return None
    label = str(number) if classes is None else classes[number]
    text = ' '.join(['0', *values[1:]])  # globox takes the first word for the label, and names may have blanks
    if len(values) == BOX_VALUES:
        parse = partial(BoundingBox.from_yolo_darknet, text, image_size=size)
    elif len(values) >= POLYGON_VALUES and all(map(_is_finite, values[1:])):  # min and max pass over a NaN
        parse = partial(BoundingBox.from_yolo_seg, text, image_size=size)
    else:
        account.add('lines without a class and four numbers or a polygon: left out', where)
        return None
    box = read_box(parse, size, account, where)
    if box and len(values) != BOX_VALUES:
        account.add('polygons: the boxes around them are taken', where)
    return box and Box(label, box.corners)


def _is_finite(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False
