"""Times of competitors that run in turns, and the ratios of these times."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Quartiles:
    """Median, first and third quartile of some numbers, in the numbers' unit."""

    median: float
    first: float
    third: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """Return the quartiles of ``values``, interpolated between them; of a single value the value itself.

        Raises:
            statistics.StatisticsError: No values.
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        first, median, third = statistics.quantiles(values, n=4, method='inclusive')
        return cls(median, first, third)


def ratios(baseline: Sequence[float], times: Sequence[float]) -> list[float]:
    """Return for each round the baseline's time divided by the candidate's: more than 1 is faster than the baseline."""
    return [b / t for b, t in zip(baseline, times, strict=True)]


def seconds(run: Run, device: torch.device, repeats: int = 1) -> float:
    """Return the mean seconds of ``repeats`` calls in a row; a GPU is timed by events on its own stream."""
    if device.type == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(device)  # without it, an event is one of the current device
        torch.cuda.synchronize(device)
        start.record(stream)
        for _ in range(repeats):
            run()
        end.record(stream)
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def alternate(
    runs: Mapping[str, Run], rounds: int, device: torch.device, repeats: int = 1
) -> Iterator[dict[str, float]]:
    """Yield the seconds of each competitor, round by round.

    Each round starts with the next competitor, so that order effects are spread evenly.
    """
    names = list(runs)
    for number in range(rounds):
        start = number % len(names)
        with _without_collector():
            times = {name: seconds(runs[name], device, repeats) for name in names[start:] + names[:start]}
        yield {name: times[name] for name in names}


def warm_up(runs: Mapping[str, Run], rounds: int, device: torch.device) -> None:
    """Let every competitor run ``rounds`` times."""
    for _ in alternate(runs, rounds, device):
        pass


@contextmanager
def _without_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
