"""Runners of a candidate: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO or ncnn, each also with the deploy
form.

``onnxruntime-op`` is ONNX Runtime with each SCConv as one op, which needs the deploy form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmscconv.benchmark import ncnn, onnx, openvino
from mmscconv.benchmark.jobs import BEST, DTYPES, LAYOUTS, Job, Setting
from mmscconv.errors import UserError
from mmscconv.export.installed import check_installed
from mmscconv.foreign_errors import first_line


@dataclass(frozen=True)
class Runtime:
    """Another program than PyTorch, which runs exported graphs.

    Args:
        title: Name in messages.
        extra: Extra of this package that installs it.
        dtypes: Dtypes that it computes in.
    """

    title: str
    extra: str
    dtypes: tuple[str, ...]


DEPLOY = '+deploy'
CUSTOM_OP = 'onnxruntime-op'
RUNTIMES = {
    'onnxruntime': Runtime('ONNX Runtime', 'export', ('fp32',)),
    CUSTOM_OP: Runtime('ONNX Runtime', 'export', ('fp32',)),
    'openvino': Runtime('OpenVINO', 'openvino', ('fp32', 'bf16')),
    'ncnn': Runtime('ncnn', 'ncnn', ('fp32',)),
}
ENGINES = ('eager', 'compile', 'onnxruntime', 'openvino', 'ncnn')
RUNNERS = (*(engine + form for engine in ENGINES for form in ('', DEPLOY)), CUSTOM_OP + DEPLOY)


def runtime_of(runner: str) -> Runtime | None:
    """Return the runtime of a runner; None for PyTorch."""
    return RUNTIMES.get(runner.removesuffix(DEPLOY))


def check_packages(runners: Iterable[str]) -> None:
    """Raise UserError that names a runner and its packages if one of them is missing."""
    for runner in runners:
        runtime = runtime_of(runner)
        if runtime is not None:
            check_installed(f'runner {runner.removesuffix(DEPLOY)}', runtime.extra)


def refusal(setting: Setting) -> str | None:
    """Return why ``setting`` cannot be run, or None."""
    runtime = runtime_of(setting.runner)
    if setting.training and setting.runner.endswith(DEPLOY):
        return 'the deploy form cannot be trained'
    if runtime is None:
        return None
    if setting.training:
        return f'{runtime.title} does not train'
    if setting.dtype not in runtime.dtypes:
        return f'autocast is not exported, {runtime.title} runs {" and ".join(runtime.dtypes)}'
    if setting.memory_format == 'channels_last':
        return 'exported graphs know NCHW alone'
    return None


def layouts(setting: Setting) -> tuple[str, ...]:
    """Return the memory formats to try."""
    if runtime_of(setting.runner) is not None:
        return ('nchw',)
    return tuple(LAYOUTS) if setting.memory_format == BEST else (setting.memory_format,)


def prepare(model: nn.Module, x: Tensor, setting: Setting, layout: str, *, deployed: bool, graph_is_whole: bool) -> Job:
    """Return a job on a copy of ``model``, compiled or exported before the first timed call.

    Args:
        model: In training form.
        x: (N, C, H, W).
        setting: Runner, dtype and mode.
        layout: ``'nchw'`` or ``'channels_last'``.
        deployed: Switch the copy to its deploy form.
        graph_is_whole: Treat a graph break of torch.compile as an error.
    """
    engine = setting.runner.removesuffix(DEPLOY)
    model = copy.deepcopy(model)
    model.train(setting.training)
    if deployed:
        from mmscconv.models import switch_to_deploy

        switch_to_deploy(model)
    needs_grad = x.requires_grad and setting.training
    x = x.detach().clone(memory_format=LAYOUTS[layout]).requires_grad_(needs_grad)
    model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]  # torch's stub declares memory_format beside a tensor only
    dtype = DTYPES[setting.dtype]
    if engine == 'openvino':
        return Job(model, x, dtype, False, openvino.program_of(model, x, setting.dtype))
    if engine == 'ncnn':
        return Job(model, x, dtype, False, ncnn.network_of(model, x))
    if engine in RUNTIMES:
        return Job(model, x, dtype, False, onnx.session_of(model, x, engine == CUSTOM_OP))
    if engine == 'eager':
        return Job(model, x, dtype, setting.training)
    return _compiled(model, x, setting, graph_is_whole)


def _compiled(model: nn.Module, x: Tensor, setting: Setting, graph_is_whole: bool) -> Job:
    # Every candidate and layout compiles the same code: beyond the limit, dynamo would silently run that code eagerly.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 10_000
    network: Callable[[Tensor], object] = torch.compile(model, fullgraph=graph_is_whole, dynamic=False)
    job = Job(model, x, DTYPES[setting.dtype], setting.training, network)
    try:
        if setting.training:
            job.gradients()
        else:
            with torch._inductor.config.patch(freezing=True):
                job.forward()
    except torch._dynamo.exc.TorchDynamoException as error:
        raise UserError(f'torch.compile cannot take this network: {first_line(error)}') from error
    return job
