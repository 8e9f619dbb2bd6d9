"""Data sets of this project; importing this module registers them in mmengine's root registry."""

from mmscconv.datasets.coco import CheckedCocoDataset, CheckedCocoMetric
from mmscconv.datasets.in_memory import ImagesInMemory, keep_batch
from mmscconv.datasets.voc import CheckedVOCDataset

__all__ = ['CheckedCocoDataset', 'CheckedCocoMetric', 'CheckedVOCDataset', 'ImagesInMemory', 'keep_batch']
