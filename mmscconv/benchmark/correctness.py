"""Compares a candidate with the plain form on the same input and weights, before it is timed.

SRU's gate decides, and a logit within rounding of the threshold may fall on
either side: the results are then right and differ by half an element. Hence norms
and not maxima, and tolerances above what such elements give (the figures behind
them: SCConv-R50, native against plain, 224 x 224): 1e-3 or less for a network's
outputs and 6e-3 for its gradients in fp32; 1.5e-2 and 0.1 under autocast, where
each layer's rounding decides differently in the next. So a network's gradients are
a coarse test under autocast, and each SCConv is compared by itself besides, on the
input that the plain network gives it: there nothing adds up.

In a deep network of many SCConvs the flips of one add to the input of the next, and
the whole differs by more than those tolerances without a fault. Such a network is
compared once more with shut gates (:func:`with_shut_gates`), where nothing can flip
and all else is as it was, and the share of flipped decisions is bounded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.benchmark.candidates import plain_copy
from mmscconv.benchmark.jobs import Job, random_upstream
from mmscconv.errors import UserError
from mmscconv.export.agreement import distance
from mmscconv.layers import SRU, SCConv

# Relative L2 norms, in fp32 and under autocast or TF32.
LAYER = {'output': (1e-3, 5e-2), 'gradient': (1e-2, 5e-2)}
NETWORK = {'output': (2e-3, 5e-2), 'gradient': (2e-2, 0.5)}
# Share of an SRU's decisions that may fall on the other side; a wrong statistic or weight gives tenths.
FLIPPED = 0.01
# Distance from float64 that a gradient may have which is 0 but for rounding, in distances of the plain form.
ROUNDING = 5


class DiffersError(UserError):
    """A candidate does not compute what the plain form computes."""


def check_network(job: Job, reference: Job, what: str) -> None:
    """Compare outputs, and in training the gradients of all parameters together.

    Args:
        job: What will be timed.
        reference: The same weights and input in plain eager form.
        what: Names ``job`` in the message.

    Raises:
        DiffersError: They differ.
    """
    if not job.training:
        _compare_all(zip(job.forward(), reference.forward(), strict=True), NETWORK['output'], job, what, 'output')
        return
    (outputs, gradients), (wanted, wanted_gradients) = job.gradients(), reference.gradients()
    _compare_all(zip(outputs, wanted, strict=True), NETWORK['output'], job, what, 'output')
    if gradients.keys() != wanted_gradients.keys():
        odd = sorted(gradients.keys() ^ wanted_gradients.keys())
        raise DiffersError(_refusal(what, f'gradients of {", ".join(odd[:3])} are there on one side alone'))
    difference = torch.stack([(gradients[name] - wanted).float().norm() for name, wanted in wanted_gradients.items()])
    norms = torch.stack([wanted.float().norm() for wanted in wanted_gradients.values()])
    _judge((difference.norm() / norms.norm()).item(), NETWORK['gradient'], job, what, 'gradients of the parameters')


def check_layers(job: Job, reference: Job, what: str, kind: type[nn.Module] = SCConv) -> None:
    """Compare each layer of a ``kind``, on its input in ``reference`` and under random gradients."""
    layers = {name: module for name, module in job.model.named_modules() if isinstance(module, kind)}
    plain = dict(reference.model.named_modules())
    inputs: dict[str, Tensor] = {}
    handles = [
        plain[name].register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
        for name in layers
    ]
    try:
        with torch.no_grad():
            reference.forward()
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        x = inputs.pop(name)
        ours, theirs = _layer_results(layer, x, job), _layer_results(plain[name], x, job)
        place = f'{what}, {name}'
        _judge(distance(ours.pop('output'), theirs.pop('output')), LAYER['output'], job, place, 'output')
        errors = {key: distance(ours[key], gradient) for key, gradient in theirs.items()}
        if any(not error <= _limit(LAYER['gradient'], job) for error in errors.values()):
            exact = _layer_results(copy.deepcopy(plain[name]).double(), x.double(), job)
            errors = {key: e for key, e in errors.items() if not _is_rounding(ours[key], theirs[key], exact[key])}
        for key, error in errors.items():
            _judge(error, LAYER['gradient'], job, place, f'gradient of {key}')


def with_shut_gates(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose SRUs take no position for informative, so that no gate depends on rounding."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SRU):
            module.threshold = 1.0
    return model


def check_flips(job: Job, reference: Job, what: str) -> None:
    """Bound the share of decisions that differ between the two networks, each on its own maps.

    Raises:
        DiffersError: An SRU at the start of a layer has more than ``FLIPPED`` of them on the other side.
    """
    ours, theirs = (_decisions(j) for j in (job, reference))
    for name, informative in theirs.items():
        share = (ours[name] != informative).double().mean().item()
        if not share <= FLIPPED:
            raise DiffersError(
                _refusal(what, f'{share:.1%} of the decisions of {name} are others, {FLIPPED:.0%} may be')
            )


def _decisions(job: Job) -> dict[str, Tensor]:
    """Return which positions are informative, for each SRU to which its layer hands its input."""
    found: dict[str, Tensor] = {}

    def decide(name: str, sru: SRU, x: Tensor) -> None:
        found[name] = sru.informative(sru.logit(x.detach().float()))

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: decide(f'{name}.sru', module.sru, args[0]))
        for name, module in job.model.named_modules()
        if isinstance(module, SCConv) and module.sru is not None and module.arrangement != 'C+S'
    ]
    try:
        with torch.no_grad():
            job.forward()
    finally:
        for handle in handles:
            handle.remove()
    return found


def reference_of(model: nn.Module, job: Job) -> Job:
    """Return the plain eager job with the weights of ``model`` on the input of ``job``, made before either ran."""
    x = job.x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(job.x.requires_grad)
    return Job(plain_copy(model), x, job.dtype, job.training)


def _layer_results(layer: nn.Module, x: Tensor, job: Job) -> dict[str, Any]:
    layout = torch.channels_last if job.x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    x = x.clone(memory_format=layout).requires_grad_(job.training)
    lowered = job.dtype != torch.float32 and x.dtype != torch.float64
    with torch.autocast(x.device.type, job.dtype, enabled=lowered), torch.set_grad_enabled(job.training):
        y = layer(x)
    results = {'output': y.detach()}
    if job.training:
        parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad([y], [x, *parameters.values()], random_upstream([y]))
        results |= zip(('input', *parameters), gradients, strict=True)
    return results


def _is_rounding(got: Tensor, plain: Tensor, exact: Tensor) -> bool:
    """Return True if a gradient is at most ``ROUNDING`` times as far from float64's as the plain form's.

    Decides about gradients that are zero but for rounding: those of shifts in front of a norm.
    """
    return ((got - exact).norm() <= ROUNDING * (plain - exact).norm()).item()


def _compare_all(
    pairs: Iterable[tuple[Tensor, Tensor]], tolerances: tuple[float, float], job: Job, what: str, part: str
) -> None:
    for number, (got, wanted) in enumerate(pairs):
        _judge(distance(got.detach().float(), wanted.detach().float()), tolerances, job, what, f'{part} {number}')


def _limit(tolerances: tuple[float, float], job: Job) -> float:
    tf32 = job.x.device.type == 'cuda' and torch.backends.cudnn.allow_tf32  # fp32 alone in name
    return tolerances[job.dtype != torch.float32 or tf32]


def _judge(error: float, tolerances: tuple[float, float], job: Job, what: str, part: str) -> None:
    limit = _limit(tolerances, job)
    if not error <= limit:  # also where it is not a number
        raise DiffersError(_refusal(what, f'{part} is {error:.1e} off in relative L2 norm, {limit:.0e} is allowed'))


def _refusal(what: str, problem: str) -> str:
    return f'{what} differs from the plain form, so nothing is timed: {problem}'
