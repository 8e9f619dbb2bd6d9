"""Data sets of this project; importing this module registers them in mmengine's root registry."""

from mmscconv.datasets.in_memory import ImagesInMemory, keep_batch

__all__ = ['ImagesInMemory', 'keep_batch']
