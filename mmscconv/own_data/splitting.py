"""The split into images that train and images that validate: the data set's own, or a seeded draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.own_data.image_list import words
from mmscconv.own_data.records import Account, AnnotatedImage, Splits

NAMES = ('train', 'val', 'test')
VAL_SHARE = 0.2


def split_of(parts: Sequence[str]) -> str:
    """Return the split that a path names, such as 'train2017' or 'valid' in its innermost part; '' if it names none."""
    for part in reversed(parts):
        named = [name for name in NAMES if name in words([part])]
        if len(named) == 1:
            return named[0]
    return ''


def train_and_val(splits: Splits, seed: int, account: Account) -> tuple[Splits, str]:
    """Return the images under 'train' and 'val', and under 'test' if both are given and a test set besides.

    Args:
        splits: As the data set has them.
        seed: Seed of the draw, where it has none.
        account: Counts images of several splits, and of none.

    Returns:
        The splits, and one line on where they come from.

    Raises:
        UserError: Less than two images.
    """
    given = {name: _once(images, account) for name, images in splits.items() if images}
    if 'train' in given and 'val' not in given and 'test' in given:
        given['val'] = given.pop('test')
        how = "split: the data set's own, its test set for validation"
    else:
        how = "split: the data set's own"
    if 'train' in given and 'val' in given:
        for image in given.pop('', []):
            account.add('images of no split: left out', image.path)
        held = {image.path.resolve() for image in given['val']}
        if held != {image.path.resolve() for image in given['train']}:
            return _disjoint(given, account), how
        how = 'train and val name the same images; split: '
    else:
        how = 'split: '
    every = list({image.path: image for images in given.values() for image in images}.values())
    drawn = draw(every, seed)
    return drawn, f'{how}one image in {round(1 / VAL_SHARE)} for validation, drawn with seed {seed}'


def draw(images: Sequence[AnnotatedImage], seed: int) -> Splits:
    """Draw one image in five for validation, at least one; the others are for training.

    Args:
        images: In any order: the same images and seed give the same split.
        seed: Seed of the draw.

    Raises:
        UserError: Fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f'a training and a validation set need two images at least, {len(images)} can be used')
    images = sorted(images, key=lambda image: (image.path.stem, image.path))
    order = random.Random(seed).sample(range(len(images)), len(images))
    held = set(order[: max(1, round(VAL_SHARE * len(images)))])
    return {
        'train': [image for i, image in enumerate(images) if i not in held],
        'val': [image for i, image in enumerate(images) if i in held],
    }


def _once(images: Sequence[AnnotatedImage], account: Account) -> list[AnnotatedImage]:
    found: dict[Path, AnnotatedImage] = {}
    for image in images:
        if found.setdefault(image.path.resolve(), image) is not image:
            account.add('annotations of an image that has others: left out', image.path)
    return list(found.values())


def _disjoint(splits: Splits, account: Account) -> Splits:
    """Take images that validate or test out of the earlier sets: training images measure nothing."""
    taken: dict[Path, str] = {}
    result: Splits = {}
    for name in reversed(NAMES):
        kept = []
        for image in splits.get(name, []):
            other = taken.setdefault(image.path.resolve(), name)
            if other == name:
                kept.append(image)
            else:
                account.add(f'images of {name} that are in {other}, too: left out of {name}', image.path)
        if kept:
            result[name] = kept
    return {name: result[name] for name in NAMES if name in result}
