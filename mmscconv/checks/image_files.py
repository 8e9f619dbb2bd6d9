"""Checks of image files: names one that cannot be loaded or does not fit its annotation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmscconv.errors import UserError
from mmscconv.foreign_errors import flat_message

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')  # that OpenCV reads, in lower case
# First and last bytes of a file of each format. Within the data of a JPEG, FF is never followed by D9.
ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG': b'IEND\xaeB`\x82'}

# The EXIF tag of an image's orientation, and its values for a quarter turn.
ORIENTATION = 0x0112
ON_ITS_SIDE = (5, 6, 7, 8)
TIFF_SIZE = (0x0100, 0x0101)  # tags of the stored width and height
WEBP_TURNS = (4, 13)  # the first version of OpenCV that heeds the EXIF data of WebP


def truncation(path: str | Path) -> str | None:
    """Return why a file is an incomplete JPEG or PNG, or None; older versions of OpenCV fill what is missing with grey.

    It costs two short reads. Only where a file does not end as its format does,
    which is also so with bytes appended to a whole image, Pillow decodes it.
    """
    try:
        with Path(path).open('rb') as file:
            head = file.read(4)
            size = file.seek(0, os.SEEK_END)
            end = next((end for start, end in ENDS.items() if head.startswith(start)), None)
            if size == 0:
                return 'the file is empty'
            if end is None:
                return None
            file.seek(max(0, size - len(end)))
            if file.read() == end:
                return None
        return _pillow_complaint(path)
    except OSError:
        return None  # not a local file, or missing: loading it raises an error


def _pillow_complaint(path: str | Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        return 'the file is not an image'
    except Image.DecompressionBombError as error:
        return f'the file does not end as its format does, and has too many pixels to be checked ({error})'
    except (OSError, SyntaxError) as error:  # Pillow's own for a broken PNG
        return f'the file is cut short ({error})'
    return None


def size_of(path: str | Path) -> tuple[int, int]:
    """Return the (width, height) that an image has once loaded, turned as its EXIF data say, without decoding it.

    Raises:
        UserError: The file is missing or no image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return loaded_size(image)[0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'cannot load {path}: {flat_message(error)}') from error


def loaded_size(image: Any) -> tuple[tuple[int, int], bool]:
    """Return the (width, height) that a Pillow image has once OpenCV loads it, and whether EXIF data swap them."""
    turned = heeds_exif(image) and image.getexif().get(ORIENTATION) in ON_ITS_SIDE
    # The size of a TIFF is the turned one in newer versions of Pillow, the stored one in older ones.
    width, height = map(image.tag_v2.get, TIFF_SIZE) if image.format == 'TIFF' else image.size
    return ((height, width) if turned else (width, height)), turned


def heeds_exif(image: Any) -> bool:
    """Return True if OpenCV turns images of this one's format as their EXIF data say."""
    import cv2

    return image.format != 'WEBP' or tuple(map(int, cv2.__version__.split('.')[:2])) >= WEBP_TURNS


def _exif_turns(path: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return loaded_size(image)[1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


class NamedTransform:
    """A transform of a pipeline that names the image when the transform it wraps fails.

    After an image is loaded, it is checked to be whole, and to have the size that
    its annotation gives, if that gives one.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results.get('img_path')
        annotated = results.get('height'), results.get('width')
        loads = type(self.transform).__name__.startswith('Load')
        try:
            results = self.transform(results)
        except UserError:
            raise
        except Exception as error:
            reason = (loads and path and truncation(path)) or flat_message(error) or type(error).__name__
            if not loads:
                raise UserError(f'cannot transform {path} ({type(self.transform).__name__}): {reason}') from error
            raise UserError(
                f'cannot load {path}: {reason} (restore the file, or take it out of the annotations)'
            ) from error
        if loads and path and type(self.transform).__name__ == 'LoadImageFromFile' and results is not None:
            _check(path, tuple(results['img'].shape[:2]), annotated)
        return results

    def __repr__(self) -> str:
        return repr(self.transform)


def _check(path: str, shape: tuple[int, int], annotated: tuple[int | None, int | None]) -> None:
    """Raise UserError if the image is cut short or has another (height, width) than its annotation says."""
    problem = truncation(path)
    if problem:
        raise UserError(f'cannot load {path}: {problem} (restore the file, or take it out of the annotations)')
    if not all(annotated) or shape == annotated:  # some tools write 0 for a size that they do not know
        return
    sizes = f'{path} is {shape[1]}x{shape[0]} once loaded, but its annotation says {annotated[1]}x{annotated[0]}'
    if shape == annotated[::-1] and not _exif_turns(path):
        raise UserError(f'{sizes}: they are swapped there, or the image was turned (correct the annotation)')
    if shape == annotated[::-1]:
        raise UserError(
            f'{sizes}: its EXIF data rotate it, but not its boxes '
            "(set color_type='color_ignore_orientation' in LoadImageFromFile, or rotate the file itself)"
        )
    raise UserError(f'{sizes}: the boxes belong to another image (restore the file, or correct the annotation)')


def name_broken_files(dataset: Any) -> None:
    """Wrap the transforms of a data set, and of those inside of it, in :class:`NamedTransform`."""
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            name_broken_files(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    transforms[:] = [t if isinstance(t, NamedTransform) else NamedTransform(t) for t in transforms]
