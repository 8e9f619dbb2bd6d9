"""Images with the detector's boxes drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mmscconv.checks.image_files import heeds_exif
from mmscconv.report.matching import Verdicts

LONGEST, SHORTEST = 640, 480  # pixels of the longer side of a drawn image
QUALITY = 80  # of JPEG
LETTERS = 15  # pixels high; the page shows images at about half their size
HIT, MISSED, FALSE, CONFUSED = '#1f9d3a', '#ff9f1c', '#e6194b', '#b14aed'
WIDTHS = {HIT: 1, MISSED: 3, FALSE: 3, CONFUSED: 3}


def draw(path: str, verdicts: Verdicts, names: Mapping[int, str], shape: tuple[int, int], turned: bool) -> str:
    """Return the image at ``path`` as a data URI, with hits thin and mistakes bold and named.

    Args:
        path: Path of the image.
        verdicts: Verdicts with boxes in pixels of the image as it was loaded.
        names: Names of the classes, by category id.
        shape: (H, W) of the image as it was loaded.
        turned: Whether it was loaded as its EXIF data say, as far as its format is loaded so.

    Raises:
        OSError: The image cannot be read.
    """
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        as_loaded = upright if turned and heeds_exif(file) and upright.size == shape[::-1] else file
        picture = as_loaded.convert('RGB')
    full = picture.width
    longest = min(max(max(picture.size), SHORTEST), LONGEST)
    picture = ImageOps.contain(picture, (longest, longest))
    pen = _Pen(picture, picture.width / full)
    for prediction, _ in verdicts.hits:
        pen.box(prediction, HIT, '')
    for truth in verdicts.missed:
        pen.box(truth, MISSED, names[truth['category_id']])
    for prediction in verdicts.false:
        pen.box(prediction, FALSE, f'{names[prediction["category_id"]]} {prediction["score"]:.2f}')
    for prediction, truth in verdicts.confused:
        pen.box(prediction, CONFUSED, f'{names[truth["category_id"]]} as {names[prediction["category_id"]]}')
    with io.BytesIO() as content:
        picture.save(content, 'JPEG', quality=QUALITY)
        return f'data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}'


class _Pen:
    def __init__(self, picture: Image.Image, scale: float) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._font = ImageFont.load_default(LETTERS)
        self._scale = scale
        self._size = picture.size

    def box(self, annotation: Mapping[str, Any], colour: str, text: str) -> None:
        left, top, width, height = (value * self._scale for value in annotation['bbox'])
        corners: Sequence[float] = (left, top, left + max(width, 1), top + max(height, 1))
        self._draw.rectangle(corners, outline=colour, width=WIDTHS[colour])
        if not text:
            return
        text = text.encode('latin-1', 'replace').decode('latin-1')  # Pillow's own font has no other letters
        _, _, wide, high = self._draw.textbbox((0, 0), text, font=self._font)
        x = min(max(left, 0), max(self._size[0] - wide - 4, 0))
        y = min(max(top - high - 3, 0), self._size[1] - high - 3)
        self._draw.rectangle((x, y, x + wide + 4, y + high + 3), fill=colour)
        self._draw.text((x + 2, y + 1), text, fill='black' if colour == MISSED else 'white', font=self._font)
