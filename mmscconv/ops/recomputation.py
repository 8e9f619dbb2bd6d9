"""Decisions that the recomputation of a forward pass in backward takes as the pass itself did."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Decision(threading.local):
    """The answer that the forward pass got, while this thread recomputes it; ``then`` is None at all other times."""

    then: bool | None = None

    @contextmanager
    def as_before(self, then: bool) -> Iterator[None]:
        """Let ``then`` be the decision inside."""
        before, self.then = self.then, then
        try:
            yield
        finally:
            self.then = before
