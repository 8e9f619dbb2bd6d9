"""VOC's files as :mod:`mmscconv.checks.voc` reads them, for mmdet's data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import ElementTree

from mmdet.datasets import VOCDataset, XMLDataset, xml_style
from mmengine.registry import DATASETS

from mmscconv.checks.classes import require_names
from mmscconv.checks.voc import check_voc_list, folder_of, image_names, read_annotation
from mmscconv.datasets.replacing import replaced


@contextmanager
def mended_files(dataset: XMLDataset) -> Iterator[None]:
    """Let mmdet's reader see the checked and mended files."""
    folder = folder_of(dataset.ann_file, dataset.sub_data_root, vars(dataset))
    trees = SimpleNamespace(parse=lambda path: ElementTree(read_annotation(path, folder)))
    with replaced(xml_style, 'ET', trees), replaced(xml_style, 'list_from_file', image_names):
        yield


@DATASETS.register_module()
class CheckedVOCDataset(VOCDataset):
    """mmdet's ``VOCDataset``, whose files are checked and mended.

    Raises:
        UserError: Of :func:`mmscconv.checks.voc.check_voc_list`.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """Check the files, and return mmdet's records of them."""
        if '://' in self.ann_file or self.backend_args:
            return super().load_data_list()
        require_names(self.metainfo.get('classes'), f'the data set of {self.ann_file}')
        folder = folder_of(self.ann_file, self.sub_data_root, vars(self))
        check_voc_list(folder, self.metainfo['classes'], self.test_mode)
        with mended_files(self):
            return super().load_data_list()
