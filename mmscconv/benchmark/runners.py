"""Runners of a candidate: eager PyTorch, torch.compile or ONNX Runtime, each also with the deploy form.

``onnxruntime-op`` is ONNX Runtime with each SCConv as one op, which needs the deploy form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmscconv.benchmark import onnx
from mmscconv.benchmark.jobs import BEST, DTYPES, LAYOUTS, Job, Setting
from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line

ENGINES = ('eager', 'compile', 'onnxruntime')
DEPLOY = '+deploy'
CUSTOM_OP = 'onnxruntime-op'
RUNNERS = (*(engine + form for engine in ENGINES for form in ('', DEPLOY)), CUSTOM_OP + DEPLOY)


def refusal(setting: Setting) -> str | None:
    """Return why ``setting`` cannot be run, or None."""
    engine = setting.runner.removesuffix(DEPLOY)
    if setting.training and setting.runner.endswith(DEPLOY):
        return 'the deploy form cannot be trained'
    if not engine.startswith('onnxruntime'):
        return None
    if setting.training:
        return 'ONNX Runtime does not train'
    if setting.dtype != 'fp32':
        return 'autocast is not exported, ONNX Runtime runs fp32'
    if setting.memory_format == 'channels_last':
        return 'ONNX knows NCHW alone'
    return None


def layouts(setting: Setting) -> tuple[str, ...]:
    """Return the memory formats to try."""
    if setting.runner.startswith('onnxruntime'):
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
    if engine.startswith('onnxruntime'):
        return Job(model, x, DTYPES[setting.dtype], False, onnx.session_of(model, x, engine == CUSTOM_OP))
    if engine == 'eager':
        return Job(model, x, DTYPES[setting.dtype], setting.training)
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
