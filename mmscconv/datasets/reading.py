"""mmdet's own data sets and evaluation, made to read annotation files as the classes of this package do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.evaluation import CocoMetric

from mmscconv.datasets.coco import api_of, reading_checked
from mmscconv.datasets.replacing import replaced
from mmscconv.datasets.voc import mended_files


@contextmanager
def annotations_checked() -> Iterator[None]:
    """Check each annotation file that mmdet reads, as soon as it is read.

    A config may name ``CocoDataset``, ``VOCDataset`` or a data set derived from them;
    all are treated as :class:`CheckedCocoDataset` and :class:`CheckedVOCDataset` are.

    Raises:
        UserError: In this context, from building a data set or an evaluator.
    """
    with (
        replaced(CocoDataset, 'COCOAPI', property(api_of)),
        replaced(CocoMetric, '__init__', reading_checked(CocoMetric.__init__)),
        replaced(XMLDataset, 'load_data_list', _mended(XMLDataset.load_data_list)),
    ):
        yield


def _mended(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def load_data_list(dataset: XMLDataset) -> Any:
        if '://' in dataset.ann_file or dataset.backend_args:
            return load(dataset)
        with mended_files(dataset):
            return load(dataset)

    return load_data_list
