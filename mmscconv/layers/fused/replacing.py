"""The decorator by which a kernel or a rearranged form runs in the place of a layer's ``forward``.

A layer's ``forward`` calls its modules, one equation after the other.
``replaced_by(function)`` first tries ``function(layer, x)``, once a call; if it
returns None, ``forward`` runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor, nn
from torch.fx import Proxy

from mmscconv.layers.intact import as_its_class

Halves = tuple[Tensor, Tensor]


class Unit(Protocol):
    """SRU, CRU and the CRU's deploy form."""

    def check(self, x: Tensor) -> None: ...
    def node(self, x: Proxy) -> Any: ...


L = TypeVar('L', bound=Unit)


def replaced_by(
    function: Callable[[L, Tensor], Tensor | None], exported: Callable[[L, Any], Any]
) -> Callable[[Callable[[L, Tensor], Tensor]], Callable[..., Any]]:
    """Decorate a unit's ``forward``, its definition for (N, C, H, W), with a ``function`` that may run instead.

    The wrapper checks the input, and adds the batch axis to an unbatched one, (C, H, W).

    Args:
        function: Returns the unit's output, or None to let ``forward`` run.
        exported: Runs where an exported graph hands over X^w in halves, which
            :func:`~mmscconv.layers.fused.for_exports.through_halves` has checked: the SRU returns them, and the CRU
            gets them. The units are called as modules, so that their nodes have their names.
    """

    def decorate(forward: Callable[[L, Tensor], Tensor]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(self: L, x: Tensor | Halves, in_halves: bool = False) -> Any:
            if in_halves:
                return exported(self, x)
            x = cast('Tensor', x)
            if isinstance(x, Proxy):
                return self.node(x)
            self.check(x)
            if x.dim() == 3:
                return run(self, x.unsqueeze(0)).squeeze(0)
            y = function(self, x) if as_its_class(cast('nn.Module', self)) else None
            return forward(self, x) if y is None else y

        return run

    return decorate
