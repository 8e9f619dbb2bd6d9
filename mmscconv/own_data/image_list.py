"""Image files of a data set: the list, the image of an annotation, and sizes once loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from mmscconv.checks.image_files import SUFFIXES, loaded_size, truncation
from mmscconv.errors import UserError
from mmscconv.own_data.path_words import told_apart, words
from mmscconv.own_data.records import Account, Size

SAME_FOLDER = 100  # outweighs any number of words that two paths have in common


def walk(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield files with one of ``suffixes``, sorted, through links to folders, without hidden files and folders."""
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link into a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(files):
            if name.lower().endswith(tuple(suffixes)) and not name.startswith('.'):
                yield Path(parent) / name


class ImageIndex:
    """The images below a folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = list(walk(folder, SUFFIXES))
        self._by_stem: dict[str, list[Path]] = {}
        for path in self.paths:
            self._by_stem.setdefault(path.stem, []).append(path)

    def by_stem(self, annotation: Path, name: str | None = None) -> Path | None:
        """Return the image whose name without extension is the annotation file's, or else ``name``'s."""
        for stem in (annotation.stem, _file_name(name or '').stem):
            candidates = self._by_stem.get(stem, [])
            if len(candidates) > 1 and name and any(path.name == _file_name(name).name for path in candidates):
                candidates = [path for path in candidates if path.name == _file_name(name).name]
            if candidates:
                return self._nearest(candidates, annotation)
        return None

    def by_names(self, names: Iterable[str], annotation: Path, others: Iterable[Path] = ()) -> dict[str, Path]:
        """Return the images of file names, which may begin with folders; names whose image is not there are left out.

        Where no image lies in a name's folders, one of the same name in other folders is taken, unless it is another
        name's, or the folders tell train from val or one number from another.

        Args:
            names: File names in ``annotation``.
            annotation: The file that has them.
            others: Images of further names in it.
        """
        wanted = {name: _file_name(name) for name in names}
        found: dict[str, Path] = {}
        for name, file in wanted.items():
            inside = [path for path in self._named(file) if path.parts[-len(file.parts) :] == file.parts]
            if image := self._nearest(inside, annotation):
                found[name] = image
        elsewhere: dict[Path, list[str]] = {}
        for name in [name for name in wanted if name not in found]:
            file = wanted[name]
            candidates = [
                path
                for path in self._named(file)
                if not told_apart(file.parent.parts, _inside(path.parent, self.folder))
            ]
            if image := self._nearest(candidates, annotation):
                elsewhere.setdefault(image, []).append(name)
        taken = {*found.values(), *others}
        for image, claims in elsewhere.items():
            if image not in taken and len(claims) == 1:
                found[claims[0]] = image
        return found

    def _named(self, file: PurePosixPath) -> list[Path]:
        return [path for path in self._by_stem.get(file.stem, []) if path.name == file.name]

    def _nearest(self, candidates: Sequence[Path], annotation: Path) -> Path | None:
        """Return the image in the annotation's folder, or in the one that has the most words of its path in common."""
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        near = words([*_inside(annotation.parent, self.folder), annotation.stem])

        def closeness(path: Path) -> int:
            return SAME_FOLDER * (path.parent == annotation.parent) + len(
                near & words(_inside(path.parent, self.folder))
            )

        ranked = sorted(candidates, key=closeness, reverse=True)
        if closeness(ranked[0]) == closeness(ranked[1]):
            raise UserError(
                f'{annotation} may belong to {ranked[0]} or to {ranked[1]}: '
                'remove one of them, or name the folder with --images'
            )
        return ranked[0]


def _file_name(name: str) -> PurePosixPath:
    return PurePosixPath(name.strip().replace('\\', '/'))


def _inside(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts if path.is_relative_to(folder) else path.parts


def measured(path: Path, annotated: tuple[int | None, int | None], account: Account) -> Size | None:
    """Return an image's (width, height) once loaded; None, and counted, if it cannot be used.

    Args:
        path: Image file.
        annotated: (width, height) of its annotation; None or 0 for a side that it does not give.
        account: Counts images that are damaged or not those their annotations describe.
    """
    try:
        with Image.open(path) as image:
            size, turned = loaded_size(image)
    except (OSError, SyntaxError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        account.add('images that cannot be read: left out', path)
        return None
    problem = truncation(path)
    if problem:
        account.add('images that are cut short: left out', path)
        return None
    if all(annotated) and annotated != size:
        if annotated == size[::-1] and turned:
            account.add('images that their EXIF data rotate, but not their boxes: left out, rotate the files', path)
        else:
            account.add('images of another size than their annotations say: left out', path)
        return None
    return size
