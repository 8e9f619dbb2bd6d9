"""An order of children that keeps others from pairing a norm with the wrong convolution."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class NormsFirst(nn.Module):
    """A mixin for modules whose BN is not applied to the output of the convolution registered before it.

    mmcv's ``fuse_conv_bn`` walks ``named_children()`` and folds each BN into the last
    convolution before it. Where the module's forward pairs them differently, that
    raises or silently gives other numbers. With the norms in front ``fuse_conv_bn``
    finds no pair. Parameters and state dict keep their order, which optimizer states need.
    """

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the children as torch does, batch norms first."""
        return iter(sorted(super().named_children(), key=lambda child: not isinstance(child[1], _BatchNorm)))
