"""The popular unofficial ScConv module: its arithmetic as a layer, and its checkpoints renamed for ours."""

from mmscconv.legacy.convert import convert_weights
from mmscconv.legacy.layer import LegacySCConv

__all__ = ['LegacySCConv', 'convert_weights']
