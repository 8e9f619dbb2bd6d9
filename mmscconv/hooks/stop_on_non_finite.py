"""Stops a training whose loss is not finite, and names the first layer at fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmscconv.errors import UserError
from mmscconv.hooks.unwrapped import model_of
from mmscconv.storage.checkpoints import last_good_checkpoint


@HOOKS.register_module()
class StopOnNonFinite(Hook):
    """Stops before a NaN or infinite loss reaches the weights.

    The loss is looked at where the optimizer is about to step, when gradient
    clipping, where a config has it, has waited for the device anyway, and after iterations without a step.
    Only when it is not finite, the batch is run once more, with a hook on every
    layer, and the first layer whose output is not finite is named. The weights are
    still those that produced the loss.

    Raises:
        UserError: Names the iteration, the losses, the layer, and the newest
            checkpoint in the work dir whose weights are all finite.
    """

    def __init__(self) -> None:
        self._losses: Mapping[str, Any] = {}
        self._data_batch: Any = None
        self._handles: list[Any] = []

    def before_train(self, runner: Runner) -> None:
        self._handles = [w.optimizer.register_step_pre_hook(lambda *_: self._check(runner)) for w in _wrappers(runner)]
        self._handles.append(model_of(runner).register_forward_hook(self._keep_losses))

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._data_batch = data_batch

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._check(runner)  # where the optimizer made no step: accumulation, or a scaler that skipped it

    def _keep_losses(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if isinstance(outputs, Mapping):
            self._losses = outputs

    def _check(self, runner: Runner) -> None:
        losses = _losses(self._losses)
        values = [value.detach().float().mean() for tensors in losses.values() for value in tensors]
        if not values or torch.stack(values).sum().isfinite():
            self._losses = {}
            return
        # A sum of finite losses may overflow, too; then all of them are named.
        wrong = [name for name, tensors in losses.items() if not all(map(_finite, tensors))] or [*losses]
        good = last_good_checkpoint(runner.work_dir)
        raise UserError(
            f'the loss is not finite at iteration {runner.iter + 1} ({", ".join(wrong)}): {self._origin(runner)}; '
            f'{f"last good checkpoint: {good}" if good else "no checkpoint was saved before"} '
            '(a lower learning rate, a longer warm-up or clipped gradients may help)'
        )

    def _origin(self, runner: Runner) -> str:
        """Run the batch again and say where the first number that is not finite comes from."""
        model = model_of(runner)
        distributed = is_model_wrapper(runner.model)
        if distributed and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
            return 'the layer is unknown, as SyncBN cannot run again on one process alone'
        self._losses = {}
        with torch.no_grad(), _first_non_finite(model) as found, _wrappers(runner)[0].optim_context(model):
            data = model.data_preprocessor(self._data_batch, True)
            losses = model(**data, mode='loss') if isinstance(data, Mapping) else model(*data, mode='loss')
        if found:
            return found[0]
        if all(_finite(t) for t in _tensors(_losses(losses))):
            return 'it is finite when the batch runs again, so it comes from something random'
        return "every layer's output is finite, so it comes from the computation of the loss"


@contextmanager
def _first_non_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets a description of the first layer with an output that is not finite."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found or all(_finite(t) for t in _tensors(output)):
            return
        where = f'first in the output of {name} ({type(module).__name__})'
        if not all(_finite(p) for p in module.parameters()):
            where += ', whose weights are not finite, as after a gradient that was not'
        elif not all(_finite(t) for t in _tensors(inputs)):
            where += ', whose input is already not finite'
        found.append(where)

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_hook(partial(look, name)) for name, module in named]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _losses(outputs: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Return what mmengine adds up to the loss: every entry with 'loss' in its name."""
    return {name: list(_tensors(value)) for name, value in outputs.items() if 'loss' in name}


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    return [*wrapper.values()] if isinstance(wrapper, OptimWrapperDict) else [wrapper]
