"""The split into images that train and images that validate: the data set's own, or a seeded draw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.own_data.path_words import SPLITS
from mmscconv.own_data.records import Account, AnnotatedImage, Splits

MOST_HELD = ('val', 'test', 'train')  # an image of several splits stays in the first one of these
VAL_SHARE = 0.2
COPY = '.rf.'  # Roboflow's names of the augmented copies of one picture: photo_jpg.rf.<hash>.jpg


def train_and_val(splits: Splits, seed: int, account: Account) -> tuple[Splits, str]:
    """Return the images under 'train' and 'val', and under 'test' if both are given and a test set besides.

    Args:
        splits: As the data set has them.
        seed: Seed of the draw, where it has none.
        account: Counts images of several splits, and of none.

    Returns:
        The splits, and one line on where they come from.

    Raises:
        UserError: Less than two images, or all images of train are in another split, too.
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
    every = list({image.path.resolve(): image for images in given.values() for image in images}.values())
    for image in every:
        if COPY in image.path.name:
            account.add(f'images with {COPY!r} in their names: copies of one picture are drawn together', image.path)
    drawn = draw(every, seed)
    return drawn, f'{how}one image in {round(1 / VAL_SHARE)} for validation, drawn with seed {seed}'


def draw(images: Sequence[AnnotatedImage], seed: int) -> Splits:
    """Draw one image in five for validation, at least one; the others are for training.

    Augmented copies of one picture, by Roboflow's names, stay together.

    Args:
        images: In any order: the same images and seed give the same split.
        seed: Seed of the draw.

    Raises:
        UserError: Fewer than two images, or copies of one picture alone.
    """
    pictures: dict[str, list[AnnotatedImage]] = {}
    for image in sorted(images, key=lambda image: (image.path.stem, image.path)):
        name, copy, _ = image.path.name.partition(COPY)
        pictures.setdefault(name if copy else str(image.path), []).append(image)
    if len(pictures) < 2:
        copies = ', all copies of one picture' * (len(images) > 1)
        raise UserError(f'a training and a validation set need two images at least, {len(images)} can be used{copies}')
    groups = list(pictures.values())
    drawn: Splits = {'train': [], 'val': []}
    wanted = max(1, round(VAL_SHARE * len(images)))
    held: set[int] = set()
    for i in random.Random(seed).sample(range(len(groups)), len(groups) - 1):
        if wanted <= 0:
            break
        held.add(i)
        wanted -= len(groups[i])
    for i, group in enumerate(groups):
        drawn['val' if i in held else 'train'] += group
    return drawn


def _once(images: Sequence[AnnotatedImage], account: Account) -> list[AnnotatedImage]:
    found: dict[Path, AnnotatedImage] = {}
    for image in images:
        if found.setdefault(image.path.resolve(), image) is not image:
            account.add('annotations of an image that has others: left out', image.path)
    return list(found.values())


def _disjoint(splits: Splits, account: Account) -> Splits:
    """Leave each image in one split: training images measure nothing, and a test set that is val's is no third one."""
    taken: dict[Path, str] = {}
    result: Splits = {}
    for name in MOST_HELD:
        kept = []
        for image in splits.get(name, []):
            other = taken.setdefault(image.path.resolve(), name)
            if other == name:
                kept.append(image)
            else:
                account.add(f'images of {name} that are in {other}, too: left out of {name}', image.path)
        if kept:
            result[name] = kept
    if 'train' not in result:
        images = splits['train']
        raise UserError(
            f'no image is left to train on: all {len(images)} of train are in val or test, too (first: '
            f'{images[0].path}); correct the folders or lists'
        )
    return {name: result[name] for name in SPLITS if name in result}
