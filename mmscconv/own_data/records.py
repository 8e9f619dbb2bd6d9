"""Annotated images, the common form of all data sets, and the account of omissions and changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """An object of an image.

    Args:
        label: Name of its class.
        corners: x1, y1, x2, y2 in pixels of the image, inside of it.
        crowd: Whether the object counts as neither hit nor miss and is not trained on:
            COCO's ``iscrowd`` and ``ignore``, VOC's ``difficult``.
    """

    label: str
    corners: tuple[float, float, float, float]
    crowd: bool = False

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.corners[2] - self.corners[0]

    @property
    def height(self) -> float:
        """Height in pixels."""
        return self.corners[3] - self.corners[1]


@dataclass
class AnnotatedImage:
    """An image file that can be loaded, with its (width, height) once loaded, and its objects."""

    path: Path
    size: Size
    boxes: list[Box] = field(default_factory=list)


Splits = dict[str, list[AnnotatedImage]]  # under 'train', 'val', 'test', or all under '' where none is given


@dataclass
class DataSet:
    """A data set as it was read.

    Args:
        found: Description of the recognised form, for the user.
        classes: Names in the order of the data set's own list; None where it has no list.
        splits: Images by split.
    """

    found: str
    classes: list[str] | None
    splits: Splits

    def images(self) -> Iterator[AnnotatedImage]:
        """Yield the images of all splits."""
        for images in self.splits.values():
            yield from images

    def labels(self) -> set[str]:
        """Return the labels that objects have."""
        return {box.label for image in self.images() for box in image.boxes}


class Account:
    """Counts omissions, changes and assumptions by kind, with the first place of each kind."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: object, count: int = 1) -> None:
        """Count ``what``, which reads well after a number ('boxes without size: left out')."""
        self._counts[what] = self._counts.get(what, 0) + count
        self._first.setdefault(what, ' '.join(str(where).split()))

    def lines(self) -> list[str]:
        """Return one line for each kind, in the order in which the kinds were met."""
        return [f'{count} {what} (first: {self._first[what]})' for what, count in self._counts.items()]
