"""An order of children in which nobody takes a norm for that of the convolution registered before it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class NormsFirst(nn.Module):
    """A mixin for modules whose BN is not applied to the output of the convolution registered before it.

    mmcv's ``fuse_conv_bn`` walks ``named_children()`` and folds each BN into the
    last convolution it met before, which is an error or other numbers in silence
    where the module's forward pairs them differently. With the norms in front it
    finds no pair. Parameters and state dict keep their order, which optimizer states need.
    """

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the children as torch does, batch norms first."""
        return iter(sorted(super().named_children(), key=lambda child: not isinstance(child[1], _BatchNorm)))
