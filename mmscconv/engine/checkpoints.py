"""The path that version 0.1 documented for :func:`load_safely`."""

from mmscconv.storage.checkpoints import load_safely

__all__ = ['load_safely']
