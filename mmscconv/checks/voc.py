"""VOC's files: lists of images and an XML file for each, mended where only one reading makes sense.

mmdet reads them through :func:`image_names` and :func:`read_annotation`, too, where :mod:`mmscconv.datasets` puts these
in their place: what is checked is what is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from mmscconv.checks.classes import classes_of, require_names
from mmscconv.checks.coco import MAX_PIXELS
from mmscconv.checks.files import datasets, join, require_images
from mmscconv.checks.image_files import size_of
from mmscconv.checks.text import decode
from mmscconv.errors import UserError, warn

SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
# A line of VOC's list of one class: the image, and whether it shows the class (-1: no, 0: difficult, 1: yes).
CLASS_LIST = re.compile(r'(\S+)\s+(-1|0|1)')
UNKNOWN = ('', 'unspecified')  # a flag that nobody has set, as labelling tools write it


@dataclass
class VOCFolder:
    """Places of a VOC-style data set.

    Args:
        list_file: File with one image name a line.
        annotations: Folder of the XML files.
        images: Folder of the JPEG files.
    """

    list_file: str
    annotations: Path
    images: Path


@dataclass
class Findings:
    """Counts of mended and omitted things, each with the first example."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, example: Any) -> None:
        """Count one more."""
        self.counts[what] += 1
        self.first.setdefault(what, str(example))


def image_names(path: str, *_: Any, **__: Any) -> list[str]:
    """Return the names in a list of images, without blank lines; takes and ignores the further arguments of mmengine's.

    Raises:
        UserError: The file is not text.
    """
    return _read_list(path)[0]


def _read_list(path: str) -> tuple[list[str], list[str]]:
    """Return the names in a list of images, and lines about the file."""
    try:
        text, lines = decode(Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f'annotation file cannot be read: {path} ({error.strerror})') from error
    return [name for line in text.split('\n') if (name := line.strip())], lines


def check_voc_list(folder: VOCFolder, classes: Sequence[str], test: bool = False) -> None:
    """Check the files of a VOC-style data set and warn about what is mended or left out.

    Args:
        folder: Where the files are.
        classes: The data set's class names.
        test: Validation or test data; a training needs at least one object.

    Raises:
        UserError: Names the first file that is broken or missing, or whose image is.
    """
    path = folder.list_file
    names, lines = _read_list(path)
    _require_one_column(names, folder)
    if test and len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f'{path} lists {twice!r} twice, whose objects would be counted twice: take one of them out')
    require_images([f'{name}.jpg' for name in names], str(folder.images), path)
    for line in lines:
        warn(f'{path}: {line}')
    found, unknown, known = Findings(), Findings(), 0
    for name in names:
        file = folder.annotations / f'{name}.xml'
        for label in _labels(read_annotation(file, folder, found)):
            if label in classes:
                known += 1
            else:
                unknown.add(label, file)
    for label, count in unknown.counts.items():
        warn(
            f'{path}: {count} objects are named {label!r}, which is not a class, and are left out, '
            f'first in {unknown.first[label]}'
        )
    for what, count in found.counts.items():
        warn(f'{path}: {count} {what}, first {found.first[what]}')
    if unknown.counts and not known:
        raise UserError(f'no object is of a class of the data set: {path} (set metainfo.classes in the config)')
    if names and not known:
        nothing = f'no image has an object: {path}'
        if not test:
            raise UserError(f'{nothing}, there is nothing to learn')
        warn(f'{nothing}, there is nothing to find; the average precision will be -1 or not a number')


def _require_one_column(names: Sequence[str], folder: VOCFolder) -> None:
    """Refuse VOC's list of one class, whose second column mmdet would take for a part of the name."""
    match = CLASS_LIST.fullmatch(names[0]) if names else None
    if match and not (folder.annotations / f'{names[0]}.xml').exists():
        raise UserError(
            f'{folder.list_file} has two columns, as the lists of a single class have: set ann_file to a list '
            f'with the names alone, such as train.txt, or take the second column out (first line: {names[0]!r})'
        )


def _labels(root: Element) -> list[str]:
    return [entry.findtext('name', '') for entry in root.findall('object')]


def read_annotation(file: str | Path, folder: VOCFolder, found: Findings | None = None) -> Element:
    """Return the root of an image's annotation, as mmdet can read it.

    - Blanks around a name, a flag that is empty, and a size that is fractional, missing or 0 are mended.
    - Objects without width or height, or outside of the image, are taken out.

    Args:
        file: The XML file.
        folder: Where the data set's files are.
        found: Gets what was mended or taken out.

    Raises:
        UserError: The file is missing or no XML, or an object has no name or no box of four finite numbers.
    """
    file, found = Path(file), Findings() if found is None else found
    root = _parse(file, folder.list_file)
    objects = root.findall('object')
    if not objects and root.find('.//object') is not None:
        raise UserError(f'annotation has objects, but not directly in its root element <{root.tag}>: {file}')
    boxes = [_box(entry, file) for entry in objects]
    width, height = _mend_size(root, file, folder, found)
    for entry, box in zip(objects, boxes, strict=True):
        _mend_flags(entry, file, found)
        left, top, right, bottom = (int(side) for side in box)
        if right <= left or bottom <= top:
            found.add('boxes have no width or height', f'{box} in {file}; these are left out')
            root.remove(entry)
        elif right <= 1 or bottom <= 1 or left > width or top > height:  # VOC counts pixels from 1
            found.add('boxes are outside of their image', f'{box} in {file}; these are left out')
            root.remove(entry)
    return root


def _parse(file: Path, list_file: str) -> Element:
    try:
        return ElementTree.parse(file).getroot()
    except FileNotFoundError as error:
        raise UserError(f'annotation {file} is not there, but {list_file} lists it') from error
    except OSError as error:
        raise UserError(f'annotation cannot be read: {file} ({error.strerror})') from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f'annotation is not XML: {file} ({error})') from error


def _box(entry: Element, file: Path) -> list[float]:
    """Return (xmin, ymin, xmax, ymax)."""
    box = entry.find('bndbox')
    if entry.find('name') is None or box is None:
        raise UserError(f'annotation has an object without {"bndbox" if box is None else "name"}: {file}')
    values = []
    for side in SIDES:
        text = box.findtext(side)
        try:
            values.append(float(text or ''))
        except ValueError:
            values.append(float('nan'))
        if not isfinite(values[-1]) or abs(values[-1]) > MAX_PIXELS:
            raise UserError(f'annotation has {side}={text!r} in a box: {file}')
    return values


def _mend_flags(entry: Element, file: Path, found: Findings) -> None:
    name, flag = entry.find('name'), entry.find('difficult')
    if name is not None and name.text and name.text != name.text.strip():
        found.add('names of objects have blanks around them, which are taken off', f'{name.text!r} in {file}')
        name.text = name.text.strip()
    if flag is None:
        return
    text = (flag.text or '').strip()
    if text.lower() in UNKNOWN:
        found.add('objects have <difficult> without a value and are read as not difficult', file)
        flag.text = '0'
    elif text not in ('0', '1'):
        raise UserError(f'annotation has difficult={flag.text!r}, which must be 0 or 1: {file}')


def _mend_size(root: Element, file: Path, folder: VOCFolder, found: Findings) -> tuple[int, int]:
    """Return the image's width and height, and write them where mmdet reads them."""
    size = root.find('size')
    known = [_pixels(None if size is None else size.findtext(key)) for key in ('width', 'height')]
    if all(known):
        width, height = known
    else:
        image = folder.images / f'{file.relative_to(folder.annotations).with_suffix("")}.jpg'
        width, height = size_of(image)
        if size is not None:
            found.add('annotations have no size of their image, which is taken from the image', file)
    if size is None:
        size = ElementTree.SubElement(root, 'size')
    for key, value in (('width', width), ('height', height)):
        element = size.find(key)
        if element is None:
            element = ElementTree.SubElement(size, key)
        element.text = str(value)
    return width, height


def _pixels(text: str | None) -> int:
    """Return a width or height, 0 if it is not a positive whole number."""
    try:
        number = float(text or '')
    except ValueError:
        return 0
    return int(number) if 0 < number <= MAX_PIXELS and number.is_integer() else 0


def folder_of(ann_file: str, sub_data_root: str, settings: Mapping[str, Any]) -> VOCFolder:
    """Return where a data set with these paths and ``settings``, of its config, has its files."""
    root = Path(sub_data_root)
    return VOCFolder(
        ann_file, root / settings.get('ann_subdir', 'Annotations'), root / settings.get('img_subdir', 'JPEGImages')
    )


def check_voc(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Check the files of the config's data sets that mmdet's ``XMLDataset`` reads; others check their own.

    Raises:
        UserError: Of :func:`check_voc_list`.
    """
    from mmdet.datasets import XMLDataset
    from mmdet.registry import DATASETS

    for stage in stages:
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            kind = DATASETS.get(dataset['type']) if isinstance(dataset.get('type'), str) else dataset.get('type')
            if getattr(kind, 'load_data_list', None) is not XMLDataset.load_data_list or dataset.get('backend_args'):
                continue
            root, prefix = dataset.get('data_root'), dataset.get('data_prefix') or {}
            path, folder = join(root, dataset.get('ann_file')), join(root, prefix.get('sub_data_root'))
            classes = classes_of(dataset)
            if classes is not None and '://' not in path:  # without classes, the data set itself says so
                require_names(classes, f'the data set of {path}')
                check_voc_list(folder_of(path, folder, dataset), classes, test=stage != 'train')
