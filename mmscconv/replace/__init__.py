"""Swaps convolutions of a finished model for SCConv or any other conv layer. Needs torch alone."""

from mmscconv.replace.select import Match
from mmscconv.replace.swap import Replacement, replace_conv

__all__ = ['Match', 'Replacement', 'replace_conv']
