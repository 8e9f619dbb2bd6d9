"""Parameters and operations of a module, by two rules, from one trace.

``macs``: multiply-adds of convolutions and linear layers; one multiply-add is one.

``paper_ops``: what the paper's FLOPs columns count, as inferred from its rows that
come out to the last digit. On top of ``macs``: 1 per output of a biased
convolution and of average pooling, 2 per element of BN, and 1 per input and
output of global average pooling. GN, activations, max-pooling and element-wise
arithmetic cost nothing, and GN's parameters are not counted either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis, parameter_count
from fvcore.nn.jit_handles import addmm_flop_jit, bmm_flop_jit, conv_flop_count, get_shape, linear_flop_jit
from torch import nn

Handle = Callable[[list[Any], list[Any]], Counter[str]]


@dataclass(frozen=True)
class Complexity:
    """Counts for one image; ``stages`` holds those of the parts, by name."""

    params: int
    group_norm_params: int
    macs: int
    paper_ops: int
    stages: dict[str, Complexity]

    @property
    def paper_params(self) -> int:
        """Parameters as the paper counts them: without GN's."""
        return self.params - self.group_norm_params


def count(model: nn.Module, shape: tuple[int, int]) -> Complexity:
    """Count ``model`` in eval mode on one RGB image of ``shape`` (H, W); it is put back into its mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, *shape))
        analysis.clear_op_handles().set_op_handle(**HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings('none')
        operations = analysis.by_module_and_operator()
    model.train(training)
    params = parameter_count(model)
    group_norms = [name for name, module in model.named_modules() if isinstance(module, nn.GroupNorm)]

    def of(name: str, stages: dict[str, Complexity]) -> Complexity:
        inside = [norm for norm in group_norms if not name or norm == name or norm.startswith(f'{name}.')]
        ops = operations[name]
        return Complexity(
            params=params[name],
            group_norm_params=sum(params[norm] for norm in inside),
            macs=round(sum(ops[key] for key in ('conv', 'linear'))),
            paper_ops=round(sum(ops.values())),
            stages=stages,
        )

    stages = {name: of(name, {}) for name in stage_names(model)}
    return of('', {name: stage for name, stage in stages.items() if stage.params or stage.paper_ops})


def stage_names(model: nn.Module) -> list[str]:
    """Name the parts of a network: children, those of ``backbone`` and of lists in place of these themselves."""
    names = []

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            if name == 'backbone' or isinstance(child, nn.ModuleList):
                visit(f'{prefix}{name}.', child)
            else:
                names.append(prefix + name)

    visit('', model)
    return names


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    output = get_shape(outputs[0])
    macs = conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), output)
    biased = get_shape(inputs[2]) is not None
    return Counter(conv=macs, bias=prod(output) if biased else 0)


def _by(name: str, ops: Callable[[list[Any], list[Any]], float]) -> Handle:
    return lambda inputs, outputs: Counter({name: ops(inputs, outputs)})


def _elements(inputs: list[Any], _: list[Any]) -> int:
    return prod(get_shape(inputs[0]))


def _outputs(_: list[Any], outputs: list[Any]) -> int:
    return prod(get_shape(outputs[0]))


def _global_pool(inputs: list[Any], outputs: list[Any]) -> int:
    return _elements(inputs, outputs) + _outputs(inputs, outputs)


HANDLES: dict[str, Handle] = {
    'aten::_convolution': _convolution,
    'aten::_convolution_mode': _convolution,  # padding='same'
    'aten::linear': _by('linear', linear_flop_jit),
    'aten::addmm': _by('linear', addmm_flop_jit),
    'aten::bmm': _by('linear', bmm_flop_jit),
    'aten::batch_norm': _by('batch_norm', lambda inputs, outputs: 2 * _elements(inputs, outputs)),
    'aten::avg_pool2d': _by('pool', _outputs),
    'aten::adaptive_avg_pool2d': _by('pool', _global_pool),
    'aten::mean': _by('pool', _global_pool),
}
