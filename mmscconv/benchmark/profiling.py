"""A competitor's time by operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch.profiler import ProfilerActivity, profile

from mmscconv.benchmark.session import Competitor, Plan
from mmscconv.benchmark.timing import seconds
from mmscconv.table import Table

# Operators with a smaller share of the time are summed in one line.
LEAST_SHARE = 0.01


def profile_table(competitor: Competitor, runs: int, plan: Plan) -> Table:
    """Return a line per operator: calls and milliseconds per run, and the share of the sum of all.

    The time of an operator excludes the operators that it calls; on a GPU it is the GPU's
    time. Convolutions with different kernels or groups have separate lines.

    Args:
        competitor: One that runs in PyTorch; ONNX Runtime's operators are not recorded.
        runs: Number of runs to average.
        plan: Gives the device.
    """
    on_gpu = plan.device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        seconds(competitor.run, plan.device, runs)
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in profiler.key_averages(group_by_input_shape=True):
        entry = times[operator_name(event.key, event.input_shapes)]
        entry[0] += event.count / runs
        entry[1] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / runs
    return Table(('operator', 'calls', 'ms', 'share'), list(_lines(times)))


def operator_name(key: str, shapes: Sequence[Any]) -> str:
    """Return an operator's name, for a convolution with its kernel and groups, from the shapes of its inputs."""
    maps = [shape for shape in shapes if len(shape) == 4]
    if 'convolution' not in key or len(maps) < 2:
        return key
    x, weight = maps[-2:]
    groups = x[1] // weight[1]
    return f'{key}, {weight[2]}x{weight[3]}' + (f', {groups} groups' if groups > 1 else '')


def _lines(times: dict[str, list[float]]) -> Iterable[tuple[str, ...]]:
    total = sum(ms for _, ms in times.values())
    small = [0.0, 0.0]
    for name, (calls, ms) in sorted(times.items(), key=lambda item: -item[1][1]):
        if ms < LEAST_SHARE * total:
            small[0] += calls
            small[1] += ms
        else:
            yield _line(name, calls, ms, total)
    yield _line('less than 1 % each', small[0], small[1], total)


def _line(name: str, calls: float, ms: float, total: float) -> tuple[str, ...]:
    return name, f'{calls:.4g}', f'{ms:.4g}', f'{ms / total:.1%}' if total else ''
