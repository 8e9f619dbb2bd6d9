"""COCO files as :mod:`mmscconv.checks.coco` reads them, for mmdet's data set and for its evaluation.

mmdet numbers the classes in the order of the file's categories, and names them in the order of the config. Here, both
the data set and the evaluation find each class by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.fileio import get_local_path
from mmengine.registry import DATASETS, METRICS

from mmscconv.checks.classes import require_names
from mmscconv.checks.coco import classes_read_by_name, objects_of, read_coco
from mmscconv.checks.files import require_images
from mmscconv.errors import UserError, warn


class CheckedCOCO(COCO):
    """Reads a file for mmdet.

    Args:
        annotation_file: Path of the file.
        folder: Folder of its images, which are looked for; None to leave that out.
        test: The file is for validation or testing: it may be without objects.
        tell: Warn about what is mended or left out.

    Raises:
        UserError: Of :func:`mmscconv.checks.coco.read_coco`; an image that is not there.
    """

    def __init__(
        self, annotation_file: str | None = None, folder: str | None = None, test: bool = False, tell: bool = True
    ) -> None:
        super().__init__()
        self.path, self.test, self.tell = str(annotation_file), test, tell
        if annotation_file is None:
            return
        self.dataset, lines = read_coco(self.path, test)
        self._tell(lines)
        if folder:
            require_images([image['file_name'] for image in self.dataset['images']], folder, self.path)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return the id of each class, in the order of ``cat_names``.

        Raises:
            UserError: A class is no category of the file; no object of the classes is left for a training.
        """
        if not cat_names or len(sup_names) or len(cat_ids):
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        require_names(cat_names, f'the data set of {self.path}')
        ids, lines = classes_read_by_name(self.dataset, cat_names, self.path)
        self._tell(lines)
        if not objects_of(self.dataset, ids):
            nothing = f'no annotation is of a class of the data set: {self.path}'
            if not self.test:
                raise UserError(f'{nothing}, there is nothing to learn')
            self._tell([f'{nothing}, there is nothing to find; the average precision will be -1'])
        return ids

    def _tell(self, lines: Sequence[str]) -> None:
        if self.tell:
            for line in lines:
                warn(line)


def api_of(dataset: CocoDataset) -> Callable[[str], CheckedCOCO]:
    """Return the function that reads an annotation file, given by its path, for ``dataset``.

    The function checks that the images are there, unless a ``backend_args`` names another storage.

    Raises:
        UserError: ``dataset`` has no folder of images, ``data_prefix=dict(img=...)``.
    """
    if 'img' not in dataset.data_prefix:
        raise UserError(
            f"the data set of {dataset.ann_file} has no folder of images: set data_prefix=dict(img='...') in the config"
        )
    transforms = dataset.pipeline.transforms
    elsewhere = dataset.backend_args or any(getattr(transform, 'backend_args', None) for transform in transforms)
    return partial(CheckedCOCO, folder=None if elsewhere else dataset.data_prefix['img'], test=dataset.test_mode)


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset``, whose file is checked and whose classes are found by name."""

    COCOAPI = property(api_of)


def reading_checked(init: Callable[..., None]) -> Callable[..., None]:
    """Return ``CocoMetric.__init__`` with its ground truth read as the data set reads it."""

    @functools.wraps(init)
    def initialize(self: CocoMetric, ann_file: str | None = None, *args: Any, **kwargs: Any) -> None:
        init(self, None, *args, **kwargs)
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = CheckedCOCO(path, test=True, tell=False)  # the data set has told

    return initialize


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` for :class:`CheckedCocoDataset`: the ground truth is read in the same way."""

    __init__ = reading_checked(CocoMetric.__init__)
