"""Class names and their number, compared between data set, annotation file, model and checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from mmscconv.checks.files import datasets, join
from mmscconv.errors import UserError, warn
from mmscconv.storage.checkpoints import classes_in

# Heads that tell objects from background, or label pixels: their classes are not the data set's.
OTHER_HEADS = ('rpn_head', 'semantic_head')


def require_names(classes: Any, owner: str) -> None:
    """Raise UserError unless ``classes``, of the data set that ``owner`` describes, are distinct, proper names."""
    if isinstance(classes, str):
        raise UserError(
            f"{owner} has classes={classes!r}, a text whose letters would be the classes: write ('{classes}',), "
            'with a comma, or the path of a file with one name a line'
        )
    if not isinstance(classes, Sequence):
        raise UserError(f'{owner} has classes={classes!r}, which must be a tuple of names')
    for name in classes:
        if not isinstance(name, str) or name.strip('\ufeff \t\r\n') != name or not name:
            raise UserError(f'{owner} has the class {name!r}: give a name without blanks around it')
        if classes.count(name) > 1:
            raise UserError(f'{owner} has the class {name!r} twice')


def check_classes(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Compare the class names of the data sets of all ``stages`` with each other.

    Raises:
        UserError: Classes that are no names, or that differ between two data sets.
    """
    first: tuple[str, tuple[str, ...]] | None = None
    for stage in stages:
        for dataset in datasets(cfg.get(f'{stage}_dataloader')):
            classes, owner = classes_of(dataset), f'{stage}_dataloader ({_source(dataset)})'
            if classes is None:
                continue
            require_names(classes, owner)
            first = first or (owner, tuple(classes))
            if tuple(classes) != first[1]:
                raise UserError(
                    f'{first[0]} has the classes {_few(first[1])}, {owner} has {_few(classes)}: set the same '
                    'metainfo.classes, in the same order, in both'
                )


def require_same_classes(first: Sequence[str], owner: str, others: Sequence[str], other: str) -> None:
    """Raise UserError unless two data sets of a classifier have the same classes in the same order."""
    if first != others:
        differing = [name for name in (*first, *others) if name not in first or name not in others]
        which = f'{differing[0]!r} is in one of them alone' if differing else 'in another order'
        raise UserError(
            f'{other} has {len(others)} classes, {owner} {len(first)}, {which}: each label would mean another class '
            'there (class folders need the same names in both)'
        )


def classes_of(dataset: Mapping[str, Any]) -> Any:
    """Return the classes that a data set built from this config will have, None if the config does not say."""
    metainfo = dataset.get('metainfo')
    classes = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    if isinstance(classes, str) and Path(classes).is_file():
        return None  # mmengine reads the names from this file; the built data set's names are checked
    if classes is None and isinstance(dataset.get('type'), str):
        from mmdet.registry import DATASETS

        classes = getattr(DATASETS.get(dataset['type']), 'METAINFO', {}).get('classes')
    return classes


def _source(dataset: Mapping[str, Any]) -> str:
    return join(dataset.get('data_root'), dataset.get('ann_file')) or str(dataset.get('type'))


def _few(names: Sequence[str]) -> str:
    return f'({", ".join([*map(repr, names[:4]), *(["..."] if len(names) > 4 else [])])})'


def check_heads(model: nn.Module, metainfo: Mapping[str, Any], source: str, classifies: bool = False) -> None:
    """Compare ``num_classes`` of each head with the data set's classes.

    Args:
        model: The detector or classifier, with or without a wrapper around it.
        metainfo: The data set's metainfo.
        source: Name of the data set in messages.
        classifies: The model labels images; more outputs than classes do no harm there.

    Raises:
        UserError: A head has another number. With too few, objects of the last classes become background; with
            too many, the evaluation meets a label without a name.
    """
    classes = metainfo.get('classes')
    if classes is None:
        return
    require_names(classes, source)
    if 'stuff_classes' in metainfo:  # panoptic: things and stuff have heads of their own
        return
    for name, number in _heads(model):
        if number == len(classes):
            continue
        found = f'{name}.num_classes is {number}, but {source} has {len(classes)} classes {_few(classes)}'
        if classifies and number > len(classes):
            warn(f'{found}; the further outputs are never right')
            continue
        raise UserError(f'{found}: set {name}.num_classes={len(classes)}, or metainfo.classes')


def _heads(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the config's name and the number of classes of each head that classifies objects."""
    for name, module in model.named_modules():
        number = getattr(module, 'num_classes', None)
        parts = [part for part in name.split('.') if part != 'module']
        words = [part for part in parts if not part.isdigit()]
        if (
            type(number) is int
            and words
            and words[-1].endswith('head')
            and not set(words) & set(OTHER_HEADS)
            and not getattr(module, 'class_agnostic', False)
        ):
            yield '.'.join(['model', *parts]), number


def check_checkpoint_classes(checkpoint: Mapping[str, Any], classes: Sequence[str], path: str, must_fit: bool) -> None:
    """Compare the classes that a checkpoint was trained with and the config's.

    Args:
        checkpoint: Its content.
        classes: The data set's.
        path: Path of the checkpoint.
        must_fit: Its head is used as it is; otherwise the training goes on and adapts it.

    Raises:
        UserError: The same names stand in another order: the results would be of other classes.
    """
    theirs = classes_in(checkpoint)
    if theirs is None or theirs == [*classes]:
        return
    if len(theirs) != len(classes):  # fewer outputs than classes are told with the weights
        if must_fit and len(theirs) > len(classes) and [*theirs][: len(classes)] != [*classes]:
            raise UserError(
                f'{path} was trained with {len(theirs)} classes {_few(theirs)}, the data set has {len(classes)} '
                f'{_few(classes)}: each label would mean another class'
            )
        return
    found = f'{path} was trained with the classes {_few(theirs)}, the config has {_few(classes)}'
    if must_fit and sorted(theirs) == sorted(classes):
        raise UserError(f"{found}: set metainfo.classes in the checkpoint's order")
    warn(f'{found}; each class takes the output at its own place')
