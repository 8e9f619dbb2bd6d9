"""A picture of a data set: images with their boxes, and numbers of objects by class and size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mmscconv.checks.image_files import heeds_exif
from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line
from mmscconv.own_data.recipe import Recipe, object_sizes
from mmscconv.own_data.records import AnnotatedImage, Splits
from mmscconv.storage.disk import replacing

COLUMNS, ROWS = 4, 3
LONGEST = 480  # pixels of an image on the sheet
MOST_CLASSES, LABELLED_CLASSES = 30, 12


def write_sheet(path: Path, splits: Splits, classes: Sequence[str], recipe: Recipe) -> None:
    """Draw images spread over the training set, the objects by class, and their sizes, into the PNG file ``path``."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(16, 15), layout='constrained')
    grid = figure.add_gridspec(ROWS + 1, COLUMNS)
    by_class, by_size = (figure.add_subplot(grid[0, half]) for half in (slice(0, 2), slice(2, 4)))
    _draw_classes(by_class, splits, classes)
    _draw_sizes(by_size, splits, recipe)
    colours = _colours(classes)
    images = splits['train']
    shown = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, COLUMNS * ROWS).astype(int))]
    for i, image in enumerate(shown):
        _draw_image(figure.add_subplot(grid[1 + i // COLUMNS, i % COLUMNS]), image, colours)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=80)
    pyplot.close(figure)


def _colours(classes: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps['tab10' if len(classes) <= 10 else 'tab20']
    return {name: palette(i % palette.N) for i, name in enumerate(classes)}


def _draw_classes(axes: Any, splits: Splits, classes: Sequence[str]) -> None:
    counts = {name: Counter(box.label for image in images for box in image.boxes) for name, images in splits.items()}
    total = sum(counts.values(), Counter())
    shown = [name for name in classes if total[name]] or list(classes)
    if len(shown) > MOST_CLASSES:
        shown = [name for name in shown if total[name] >= sorted(total.values())[-MOST_CLASSES]][:MOST_CLASSES]
    places, height = np.arange(len(shown)), 0.8 / len(splits)
    for i, (split, counted) in enumerate(counts.items()):
        bars = axes.barh(places + i * height, [counted[name] for name in shown], height, label=split)
        if len(shown) <= LABELLED_CLASSES:
            axes.bar_label(bars, fontsize=8, padding=2)
    axes.set_yticks(
        places + 0.4 - height / 2, [_short(name) for name in shown], fontsize=9 if len(shown) <= LABELLED_CLASSES else 7
    )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    missing = len(classes) - sum(1 for name in classes if total[name])
    axes.set_title('objects by class' + (f'; {missing} classes have none' if missing else ''))
    axes.legend()


def _draw_sizes(axes: Any, splits: Splits, recipe: Recipe) -> None:
    for split, images in splits.items():
        sizes = object_sizes(images, recipe.size)
        axes.hist(sizes, bins=np.geomspace(max(1, sizes.min()), max(2, sizes.max() + 1), 30), alpha=0.6, label=split)
    axes.set_xscale('log')
    axes.set(
        xlabel=f'square root of the area, in pixels once images fit into {recipe.size[0]} x {recipe.size[1]}',
        title='objects by size',
    )
    axes.legend()


def _draw_image(axes: Any, image: AnnotatedImage, colours: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    picture = as_loaded(image.path)
    picture.thumbnail((LONGEST, LONGEST))
    axes.imshow(picture)
    axes.axis('off')
    scale = picture.width / image.size[0]
    for box in image.boxes:
        x, y = box.corners[0] * scale, box.corners[1] * scale
        style = {'edgecolor': colours[box.label], 'linestyle': ':' if box.crowd else '-'}
        axes.add_patch(Rectangle((x, y), box.width * scale, box.height * scale, fill=False, lw=1.5, **style))
        axes.text(x + 1, y - 2, _short(box.label), fontsize=7, color='white', clip_on=True,
                  bbox=dict(facecolor=colours[box.label], pad=0.5, lw=0))  # fmt: skip
    axes.set_title(f'{_short(image.path.name)}: {len(image.boxes)}', fontsize=9)


def as_loaded(path: Path) -> Image.Image:
    """Return an image turned as the training turns it: the boxes are meant for that.

    Raises:
        UserError: Its pixels cannot be read, though its size can.
    """
    try:
        with Image.open(path) as file:
            return (ImageOps.exif_transpose(file) if heeds_exif(file) else file).convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'image is damaged: {path} ({first_line(error)}; replace or remove it)') from error


def _short(name: str) -> str:
    name = name.replace('$', r'\$')  # not the beginning of a formula
    return name if len(name) <= 24 else f'{name[:22]}…'
