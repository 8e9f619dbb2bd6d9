"""SRU's bytes per second beside those of a plain copy of the same tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmscconv import ops
from mmscconv.benchmark.correctness import check_layers, reference_of
from mmscconv.benchmark.jobs import DTYPES, LAYOUTS, Job, Setting, random_upstream
from mmscconv.benchmark.reporting import Summary, milliseconds, spread
from mmscconv.benchmark.session import Competitor, Plan
from mmscconv.benchmark.subjects import SEED, randomize_norms
from mmscconv.benchmark.timing import Quartiles, alternate, warm_up
from mmscconv.layers import SRU
from mmscconv.layers.fused import sru_arguments
from mmscconv.table import Table

COPY = 'copy'
COUNTING = """
Bytes are counted in two ways. At least: each tensor once, X and X^w forward, and X, the upstream gradient and X's
gradient backward. Two passes: with the inputs read twice, for the statistics of a group are needed before its first
output. Where a group stays in a cache between the passes, the truth lies between the two.
"""
# Number of tensors of X's size that are read or written: at least, and by two passes.
MOVED = {COPY: (2, 2), 'forward': (2, 3), 'backward': (3, 5)}


def measure(
    channels: int, setting: Setting, plan: Plan, on_round: Callable[[Sequence[Competitor], int], None]
) -> list[Competitor]:
    """Return the times of a copy, the plain SRU and the fastest SRU, forward and backward.

    Args:
        channels: C.
        setting: Batch, size, memory format, and dtype of X itself; mode and runner are ignored.
        plan: Rounds and device; its candidates are ignored.
        on_round: Called after each round, as in :func:`mmscconv.benchmark.session.measure`.

    Raises:
        UserError: The fastest SRU's results differ from the plain SRU's.
    """
    layout = LAYOUTS[setting.memory_format]
    x = torch.randn(setting.batch, channels, *setting.size, generator=torch.Generator().manual_seed(SEED))
    x = x.to(plan.device, DTYPES[setting.dtype]).contiguous(memory_format=layout)
    target = torch.empty_like(x)
    sru = SRU(channels).to(plan.device)
    randomize_norms(sru)
    job = Job(nn.Sequential(sru), x, DTYPES[setting.dtype], True)
    check_layers(job, reference_of(job.model, job), f'SRU, {setting.dtype}, {setting.memory_format}', SRU)

    runs: dict[str, Callable[[], object]] = {COPY: lambda: target.copy_(x)}
    for backend in dict.fromkeys(('plain', ops.choose_backend(x))):
        forward, backward = _passes(sru, x, backend)
        runs |= {f'{backend} forward': forward, f'{backend} backward': backward}
    warm_up(runs, plan.warmup, plan.device)
    competitors = [Competitor(name, setting.memory_format, run) for name, run in runs.items()]
    for number, times in enumerate(alternate(runs, plan.rounds, plan.device, plan.repeats)):
        for competitor in competitors:
            competitor.times.append(times[competitor.name])
        on_round(competitors, number)
    return competitors


def _passes(sru: SRU, x: Tensor, backend: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return SRU's forward pass and its backward pass as separate functions."""
    x = x.detach().requires_grad_()

    def forward() -> Tensor:
        return ops.sru(x, *sru_arguments(sru, x.dtype), backend=backend)

    y = forward()
    upstream, wanted = random_upstream([y]), [x, *sru.gn.parameters()]
    return torch.no_grad()(forward), lambda: torch.autograd.grad([y], wanted, upstream, retain_graph=True)


def table_of(setting: Setting, channels: int) -> Callable[[Sequence[Summary]], Table]:
    """Return the function that makes a setting's table from its summaries."""
    size = setting.batch * channels * setting.size[0] * setting.size[1] * DTYPES[setting.dtype].itemsize

    def table(summaries: Sequence[Summary]) -> Table:
        rows: list[Sequence[str]] = []
        for summary in summaries:
            cells = [summary.name, milliseconds(summary.time.median)]
            for tensors, copied in zip(MOVED[summary.name.split()[-1]], MOVED[COPY], strict=True):
                speed = tensors * size / summary.time.median / 1e9
                share = Quartiles(*(q * tensors / copied for q in vars(summary.faster).values()))
                cells += [f'{tensors * size / 1e6:.1f}', f'{speed:.1f}', spread(share)]
            rows.append(cells)
        counted = [
            f'{unit}: {rule}' for rule in ('at least', 'two passes') for unit in ('MB', 'GB/s', "share of copy's")
        ]
        return Table(('SRU', 'median, ms', *counted), rows)

    return table
