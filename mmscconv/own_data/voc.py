"""VOC: one XML file for each image, and lists of names in ``ImageSets/Main``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from globox import BoundingBox

from mmscconv.own_data.boxes import read_box
from mmscconv.own_data.image_list import ImageIndex, measured, walk
from mmscconv.own_data.path_words import split_of
from mmscconv.own_data.records import Account, AnnotatedImage, DataSet, Splits
from mmscconv.own_data.values import as_integer, read_text

LISTS = ('train', 'val', 'trainval', 'test')
VERDICTS = ('-1', '0', '1')  # the second column of the lists that VOC has for each class
HEAD = 4096  # bytes in which the first tag of an annotation stands


def find_voc(folder: Path) -> list[Path]:
    """Return the XML files below ``folder`` that annotate images."""
    return [path for path in walk(folder, ('.xml',)) if _annotates(path)]


def _annotates(path: Path) -> bool:
    try:
        with path.open('rb') as file:
            return b'<annotation' in file.read(HEAD).replace(b'\0', b'')  # without the zeros of UTF-16
    except OSError:
        return False


def read_voc(folder: Path, files: Sequence[Path], index: ImageIndex, account: Account) -> DataSet:
    """Read the annotations ``files`` below ``folder``.

    Corners are taken as they stand: labelling tools count pixels from 0. VOC's own count from 1, and mmdet subtracts 1
    from the corners of every file.

    Raises:
        UserError: A list that cannot be read; two images that may belong to one annotation.
    """
    stems: dict[Path | None, set[str]] = {}
    for file in files:
        stems.setdefault(_root(file, folder), set()).add(file.stem)
    lists = {root: _read_lists(root, known, account) if root else {} for root, known in stems.items()}
    names = {name for found in lists.values() for name in found}
    roles = _roles(names)

    splits: Splits = {}
    for file in files:
        root = _root(file, folder)
        if names:
            listed = [split for name, split in roles.items() if file.stem in lists[root].get(name, ())]
        else:
            listed = [split_of(file.relative_to(folder).parts[:-1])]
        if not listed:
            account.add('annotation files that no list of ImageSets/Main names: left out', file)
            continue
        image = _read_file(file, index, account)
        if image:
            for split in dict.fromkeys(listed):
                splits.setdefault(split, []).append(image)
    found = f'VOC, {len(files)} XML files'
    if names:
        found += f' with lists {", ".join(name for name in LISTS if name in names)}'
    return DataSet(found, None, splits)


def _root(file: Path, folder: Path) -> Path | None:
    """Return the nearest folder above an annotation that has lists: VOCdevkit has several."""
    above = [parent for parent in file.parents if parent == folder or parent.is_relative_to(folder)]
    return next((parent for parent in above if (parent / 'ImageSets' / 'Main').is_dir()), None)


def _roles(names: set[str]) -> dict[str, str]:
    """Return the split of each list; VOC's protocol is to train on trainval and to test on test."""
    if {'trainval', 'test'} <= names:
        return {'trainval': 'train', 'train': 'train', 'val': 'train', 'test': 'val'}
    if {'train', 'val'} <= names:
        return {'train': 'train', 'val': 'val', 'test': 'test'}
    if {'train', 'test'} <= names:
        return {'train': 'train', 'test': 'val'}
    return dict.fromkeys(names, '')


def _read_lists(root: Path, known: set[str], account: Account) -> dict[str, set[str]]:
    lists = {}
    for name in LISTS:
        path = root / 'ImageSets' / 'Main' / f'{name}.txt'
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
            lists[name] = {_without_verdict(line, known) for line in lines}
            for missing in sorted(lists[name] - known):
                account.add('names in lists without an annotation file: left out', f'{missing} in {path}')
    return {name: found for name, found in lists.items() if found}


def _without_verdict(line: str, known: set[str]) -> str:
    """Return the name in a line, which may have blanks in it, and a second column behind it."""
    name, _, verdict = line.rpartition(' ')
    return name.strip() if line not in known and verdict in VERDICTS and name else line


def _read_file(file: Path, index: ImageIndex, account: Account) -> AnnotatedImage | None:
    try:
        tree = ElementTree.parse(file)
    except (ElementTree.ParseError, LookupError, OSError, ValueError):
        account.add('annotation files that are not XML: left out', file)
        return None
    path = index.by_stem(file, tree.findtext('filename'))
    if path is None:
        account.add('annotations whose image is not there: left out', file)
        return None
    size = measured(path, (_side(tree, 'width'), _side(tree, 'height')), account)
    if size is None:
        return None
    image = AnnotatedImage(path, size)
    for node in tree.iter('object'):
        difficult = as_integer((node.findtext('difficult') or '').strip()) == 1
        box = read_box(partial(BoundingBox.from_xml, node), size, account, str(file), difficult)
        if box:
            image.boxes.append(box)
    return image


def _side(tree: ElementTree.ElementTree[Any], name: str) -> int | None:
    return as_integer((tree.findtext(f'size/{name}') or '').strip())
