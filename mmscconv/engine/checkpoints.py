"""The path of :func:`load_safely` in the documentation of earlier checkouts."""

from mmscconv.storage.checkpoints import load_safely

__all__ = ['load_safely']
