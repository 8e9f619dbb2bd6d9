"""One setting after the other: build, check, warm up, choose layouts, take turns."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mmscconv.benchmark.correctness import (
    DiffersError,
    check_flips,
    check_layers,
    check_network,
    reference_of,
    with_shut_gates,
)
from mmscconv.benchmark.jobs import Job, Setting
from mmscconv.benchmark.memory import DevicePeak, saved_activations
from mmscconv.benchmark.runners import DEPLOY, layouts, prepare, refusal
from mmscconv.benchmark.subjects import Subject
from mmscconv.benchmark.timing import Run, alternate, warm_up
from mmscconv.errors import UserError

# Rounds from which each candidate's better memory format is chosen; the reported ones come after.
TRIALS = 3


@dataclass
class Competitor:
    """A candidate in one form, checked and ready.

    Args:
        name: The candidate's, with '+deploy' in the deploy form.
        layout: Memory format, chosen or given.
        run: What is timed.
        saved: Bytes kept for backward; None without training.
        peak: Bytes of device memory; None off CUDA.
        times: Seconds, one per round.
    """

    name: str
    layout: str
    run: Run
    saved: int | None = None
    peak: int | None = None
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Settings of a measurement.

    Args:
        candidates: Names that the subject knows, most in :data:`mmscconv.benchmark.candidates.CANDIDATES`; the first
            is the baseline.
        rounds: Number of measured rounds.
        warmup: Number of unmeasured rounds before them.
        repeats: Calls in a row, timed together, of each candidate in each round.
        device: Device of the models and their input.
    """

    candidates: Sequence[str]
    rounds: int
    warmup: int
    repeats: int
    device: torch.device


def settings_of(**lists: Sequence[Any]) -> tuple[list[Setting], list[str]]:
    """Return all combinations that can be run, and a line for each that cannot.

    Raises:
        UserError: None can.
    """
    possible, left_out = [], []
    for values in itertools.product(*lists.values()):
        setting = Setting(**dict(zip(lists, values, strict=True)))
        reason = refusal(setting)
        if reason is None:
            possible.append(setting)
        else:
            left_out.append(f'{setting}: {reason}')
    if not possible:
        raise UserError(f'nothing is left to measure: {left_out[0]}')
    return possible, left_out


def lineup(candidates: Sequence[str], runner: str) -> list[tuple[str, bool]]:
    """Return (candidate, deployed) pairs: for a deploy runner all deployed, behind the baseline as it is."""
    if not runner.endswith(DEPLOY):
        return [(name, False) for name in candidates]
    return [(candidates[0], False), *((name, True) for name in candidates)]


def measure(
    subject: Subject, setting: Setting, plan: Plan, on_round: Callable[[Sequence[Competitor], int], None]
) -> list[Competitor]:
    """Check the candidates, let them run in turns, and return them with their times in seconds; the baseline is first.

    Args:
        subject: Layer, backbone or model to measure.
        setting: Runner, dtype, memory format, mode, batch and size.
        plan: Candidates, rounds and device.
        on_round: Called after each measured round with the competitors and the round's number, from 0 on.

    Raises:
        UserError: A candidate does not compute what the plain form computes. The check comes before any timing.
    """
    torch._dynamo.reset()
    variants = [_prepared(subject, setting, plan, *entry) for entry in lineup(plan.candidates, setting.runner)]
    runs = {f'{i} {v.layout}': v.run for i, group in enumerate(variants) for v in group}
    warm_up(runs, plan.warmup, plan.device)
    competitors = list(_better_layouts(variants, plan))
    variants.clear()
    runs = {competitor.name: competitor.run for competitor in competitors}
    for number, times in enumerate(alternate(runs, plan.rounds, plan.device, plan.repeats)):
        for competitor in competitors:
            competitor.times.append(times[competitor.name])
        on_round(competitors, number)
    return competitors


def _prepared(subject: Subject, setting: Setting, plan: Plan, name: str, deployed: bool) -> list[Competitor]:
    """Return the candidate in each layout that is to be tried, checked, its memory measured."""
    label = name + (DEPLOY if deployed else '')
    model = subject.build(subject.candidate(name), plan.device)
    x = subject.input(setting.batch, setting.size, plan.device).requires_grad_(subject.input_requires_grad)
    competitors = []
    for layout in layouts(setting):
        device_peak = DevicePeak(plan.device)

        def make(model: nn.Module, layout: str = layout) -> Job:
            return prepare(model, x, setting, layout, deployed=deployed, graph_is_whole=subject.graph_is_whole)

        job = make(model)
        saved, peak = _memory(job, device_peak)
        _check(model, job, make, setting, f'{label} in {setting.runner}, {setting.dtype}, {layout}')
        competitors.append(Competitor(label, layout, job.run, saved, peak))
    return competitors


def _check(model: nn.Module, job: Job, make: Callable[[nn.Module], Job], setting: Setting, what: str) -> None:
    """Compare ``job``, which ``make`` made of ``model``, with the plain form of ``model``."""
    reference = reference_of(model, job)
    if setting.runner == 'eager':
        check_layers(job, reference, what)
    try:
        check_network(job, reference, what)
    except DiffersError:
        shut = with_shut_gates(model)
        again = make(shut)
        check_network(again, reference_of(shut, again), f'{what}, all gates shut,')
        if setting.runner.startswith('eager'):
            check_flips(job, reference, what)


def _memory(job: Job, device_peak: DevicePeak) -> tuple[int | None, int | None]:
    job.run()
    peak = device_peak.during(job.run)
    if not job.training:
        return None, peak
    given = [*job.model.parameters(), *job.model.buffers()]
    return saved_activations(job.forward, given, [job.x]), peak


def _better_layouts(variants: Sequence[Sequence[Competitor]], plan: Plan) -> Iterator[Competitor]:
    for group in variants:
        if len(group) == 1:
            yield group[0]
            continue
        runs = {variant.layout: variant.run for variant in group}
        trials = list(alternate(runs, TRIALS, plan.device, plan.repeats))
        yield min(group, key=lambda variant: statistics.median(t[variant.layout] for t in trials))
