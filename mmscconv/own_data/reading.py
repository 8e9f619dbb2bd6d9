"""Recognises the form of a data set and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.own_data.coco import find_coco, read_coco, read_coco_file
from mmscconv.own_data.image_list import ImageIndex
from mmscconv.own_data.records import Account, Box, DataSet
from mmscconv.own_data.voc import find_voc, read_voc
from mmscconv.own_data.yolo import find_yaml, find_yolo, read_yolo

FORMS = ('coco', 'voc', 'yolo')
YAML = ('.yaml', '.yml')
FORMS_IN_WORDS = (
    'COCO (*.json with images, annotations, categories), VOC (*.xml beside images) '
    'or YOLO (data.yaml, or images and labels)'
)


def read_data_set(source: Path, images: Path | None, form: str | None, account: Account) -> DataSet:
    """Read the data set at ``source``.

    Args:
        source: Folder, a COCO file, or the YAML file of a YOLO data set.
        images: Folder of the images; None to look for them below ``source``.
        form: One of ``FORMS``; None to recognise it.
        account: Counts what is left out, changed or assumed.

    Raises:
        UserError: Nothing or several forms are recognised, or what was found cannot be read.
    """
    for path in (source, images):
        if path and not path.exists():
            raise UserError(f'data set is not there: {path}')
    if images and not images.is_dir():
        raise UserError(f'--images names no folder: {images}')
    if source.is_file():
        return _read_file(source, images, account)
    index = ImageIndex(images or source)
    if not index.paths:
        raise UserError(f'no images (*.jpg, *.png, ...) are in {index.folder}: pass their folder with --images')
    readers = _readers(source, index, form, account)
    if not readers:
        what = f'the form {form!r}' if form else FORMS_IN_WORDS
        raise UserError('; '.join([f'no annotations of {what} are in {source}', *account.lines()]))
    if len(readers) > 1:
        raise UserError(f'{source} has annotations of the forms {" and ".join(readers)}: choose one with --form')
    (read,) = readers.values()
    return read()


def _read_file(source: Path, images: Path | None, account: Account) -> DataSet:
    if source.suffix.lower() in YAML:
        return read_yolo(source.parent, source, ImageIndex(images or source.parent), account)
    if source.suffix.lower() == '.json':
        folder = source.parent.parent if source.parent.name == 'annotations' else source.parent
        return read_coco(read_coco_file(source), ImageIndex(images or folder), account)
    raise UserError(f'a data set is a folder, a *.json file of COCO or a *.yaml file of YOLO, not {source}')


def _readers(source: Path, index: ImageIndex, form: str | None, account: Account) -> dict[str, Callable[[], DataSet]]:
    readers: dict[str, Callable[[], DataSet]] = {}
    if form in (None, 'coco') and (contents := find_coco(source, account)):
        readers['coco'] = lambda: read_coco(contents, index, account)
    if form in (None, 'voc') and (files := find_voc(source)):
        readers['voc'] = lambda: read_voc(source, files, index, account)
    if form in (None, 'yolo'):
        settings = find_yaml(source)
        if settings or find_yolo(source, index):
            readers['yolo'] = lambda: read_yolo(source, settings, index, account)
    return readers


def choose_classes(data: DataSet, wanted: Sequence[str] | None, account: Account) -> list[str]:
    """Return the classes in their final order, and take objects of other classes out.

    That order is ``wanted``'s, or the data set's own, or else the alphabet's.

    Raises:
        UserError: A wanted class is not in the data set or named twice; no object is left.
    """
    labels = data.labels()
    known = list(data.classes) if data.classes is not None else sorted(labels)
    classes = list(wanted) if wanted else known
    if wanted and (missing := [name for name in wanted if name not in known]):
        raise UserError(f'--classes: no class is named {missing[0]!r}; the data set has {", ".join(map(repr, known))}')
    if len(set(classes)) < len(classes):
        raise UserError('--classes names a class twice')
    for image in data.images():
        kept: list[Box] = []
        for box in image.boxes:
            if box.label in classes:
                kept.append(box)
            else:
                account.add('objects of a class that --classes leaves out: left out', f'{box.label!r} in {image.path}')
        image.boxes = kept
    if not any(not box.crowd for image in data.images() for box in image.boxes):
        raise UserError('; '.join(['no object is left to train on', *account.lines()]))
    spelled: dict[str, str] = {}
    for name in classes:
        other = spelled.setdefault(name.lower(), name)
        if other != name:
            account.add('pairs of classes that differ in capital letters alone: kept apart', f'{other} and {name}')
    return classes
