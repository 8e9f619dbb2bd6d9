"""CRU's division of channels (Eq. 5, 6 and 11), and the nearest settings if it fails."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from mmscconv.layers.arguments import check_real, checked_integer, floor_product

MAX_TRIALS = 1000  # values of one setting that are tried for an advice
LOW_SQUEEZES = ('input', 'output')


@dataclass(frozen=True)
class CRUChannels:
    """Channels of CRU's branches.

    Args:
        in_channels, out_channels: C1, C2.
        alpha: Split ratio; the upper branch gets floor(alpha * C1) channels.
        squeeze_ratio: r.
        groups: g of the GWC.
        low_squeeze: ``'input'``: X_low has (1 - alpha) * C1 / r channels (Eq. 6);
            ``'output'``: C2 / r. Never more than C2.

    Raises:
        ValueError: From :meth:`check`, with the nearest settings that work.
    """

    in_channels: int
    out_channels: int
    alpha: float | Fraction
    squeeze_ratio: int
    groups: int
    low_squeeze: str

    @property
    def up(self) -> int:
        """Channels of X^w that the upper branch takes."""
        return floor_product(self.alpha, self.in_channels)

    @property
    def low(self) -> int:
        """Channels of X^w that the lower branch takes."""
        return self.in_channels - self.up

    @property
    def squeezed_up(self) -> int:
        """Channels of X_up, u in the error messages."""
        return self.up // self.squeeze_ratio

    @property
    def squeezed_low(self) -> int:
        """Channels of X_low, at most C2: beyond C2, PWC2 would have fewer than 0 output channels."""
        channels = self.low if self.low_squeeze == 'input' else self.out_channels
        return min(channels // self.squeeze_ratio, self.out_channels)

    def problem(self) -> str | None:
        """Return why these settings cannot be built, or None."""
        if self.alpha > 0 and self.squeezed_up < 1:
            return f'the upper branch has u = floor(alpha * in_channels) // squeeze_ratio = {self.squeezed_up} channels'
        if self.alpha > 0 and (self.squeezed_up % self.groups or self.out_channels % self.groups):
            return (
                f'u = {self.squeezed_up} and out_channels = {self.out_channels} '
                f'must both be multiples of groups = {self.groups}'
            )
        if self.alpha < 1 and (self.low < 1 or self.squeezed_low < 1):
            return f'the lower branch has {self.low} channels, {self.squeezed_low} after the squeeze'
        return None

    def check(self) -> None:
        """Raise ValueError if a setting is out of range or the channels cannot be divided."""
        for name in ('in_channels', 'out_channels', 'squeeze_ratio', 'groups'):
            checked_integer(name, getattr(self, name))
        check_real('alpha', self.alpha)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f'alpha must lie in [0, 1], got alpha={self.alpha}')
        if self.low_squeeze not in LOW_SQUEEZES:
            raise ValueError(f'low_squeeze must be one of {LOW_SQUEEZES}, got low_squeeze={self.low_squeeze!r}')
        problem = self.problem()
        if problem:
            raise ValueError(f'CRU cannot divide its channels: {problem}. {self._advice()} Given: {self}')

    def _advice(self) -> str:
        """Name the nearest value that works, for one setting at a time."""
        # Groups divide out_channels, and a ratio beyond in_channels leaves no channels.
        groups, ratio = min(self.groups - 1, self.out_channels), min(self.squeeze_ratio - 1, self.in_channels)
        up = round(self.alpha * self.in_channels)
        candidates: dict[str, Iterable[int | Fraction]] = {
            'groups': range(groups, max(groups - MAX_TRIALS, 0), -1),
            'squeeze_ratio': range(ratio, max(ratio - MAX_TRIALS, 0), -1),
            'alpha': sorted(
                (
                    Fraction(n, self.in_channels)
                    for n in range(max(up - MAX_TRIALS // 2, 1), min(up + MAX_TRIALS // 2, self.in_channels))
                ),
                key=lambda a: abs(float(a - self.alpha)),
            ),
            'in_channels': range(self.in_channels + 1, self.in_channels + 1 + MAX_TRIALS),
        }
        found = [f'{name}={value}' for name, values in candidates.items() if (value := self._working(name, values))]
        return (
            f'Nearest settings that work: {", or ".join(found)}.'
            if found
            else 'No single setting helps: choose larger channel counts.'
        )

    def _working(self, name: str, values: Iterable[int | Fraction]) -> int | Fraction | None:
        def works(value: int | Fraction) -> bool:
            setting: dict[str, Any] = {name: value}
            return replace(self, **setting).problem() is None

        return next(filter(works, values), None)
