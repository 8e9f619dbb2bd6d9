"""One candidate, ready to run forward or as a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
LAYOUTS = {'nchw': torch.contiguous_format, 'channels_last': torch.channels_last}
BEST = 'best'
MODES = ('forward', 'train')


@dataclass(frozen=True)
class Setting:
    """The conditions that all candidates of one table share.

    Args:
        runner: One of :data:`mmscconv.benchmark.runners.RUNNERS`.
        dtype: ``'fp32'``, or ``'bf16'`` or ``'fp16'`` by autocast.
        memory_format: ``'nchw'``, ``'channels_last'`` or ``'best'``, the faster one of each candidate.
        mode: ``'forward'`` (eval, no gradients) or ``'train'``.
        batch: N.
        size: (H, W).
    """

    runner: str
    dtype: str
    memory_format: str
    mode: str
    batch: int
    size: tuple[int, int]

    @property
    def training(self) -> bool:
        return self.mode == 'train'

    @property
    def shape(self) -> str:
        """Batch and size as text: '8x224x224'."""
        return f'{self.batch}x{self.size[0]}x{self.size[1]}'

    def __str__(self) -> str:
        return f'{self.runner}, {self.dtype}, {self.mode}, {self.shape}, {self.memory_format}'


class Job:
    """A model with its input, to be timed and checked.

    A training step is forward, backward under fixed random upstream gradients (for
    a scalar loss: 1) and an update by SGD with momentum. Its learning rate is 0:
    the update costs the same, and the weights stay the same in all rounds.

    Args:
        model: Owner of the weights; set to train or eval mode here.
        x: (N, C, H, W), in the memory format to measure.
        dtype: Autocast's dtype; fp32 for no autocast.
        training: Measure training steps instead of forward passes.
        network: Callable that computes ``model``, such as its compiled form; None for ``model``.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        dtype: torch.dtype,
        training: bool,
        network: Callable[[Tensor], object] | None = None,
    ) -> None:
        model.train(training)
        self.model, self.x, self.dtype, self.training = model, x, dtype, training
        self.network = model if network is None else network
        self._upstream: list[Tensor] | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        if training:
            parameters = [p for p in model.parameters() if p.requires_grad]
            self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def forward(self) -> tuple[Tensor, ...]:
        """Return all output tensors."""
        lowered = self.dtype != torch.float32
        with torch.autocast(self.x.device.type, self.dtype, enabled=lowered), torch.set_grad_enabled(self.training):
            return tuple(tree_leaves(self.network(self.x)))

    def run(self) -> None:
        """Run once what is timed: a forward pass, or a whole training step."""
        if self.optimizer is None:
            self.forward()
            return
        self._backward()
        self.optimizer.step()
        self._clear_gradients()

    def gradients(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return the outputs and the gradient of each parameter, and of the input if it requires one."""
        outputs = self._backward()
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        if self.x.grad is not None:
            gradients['input'] = self.x.grad
        self._clear_gradients()
        return tuple(y.detach() for y in outputs), gradients

    def _backward(self) -> tuple[Tensor, ...]:
        outputs = tuple(y for y in self.forward() if y.requires_grad)
        if self._upstream is None:
            self._upstream = random_upstream(outputs)
        torch.autograd.backward(outputs, self._upstream)
        return outputs

    def _clear_gradients(self) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None


def random_upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return a gradient for each output, in its dtype and layout, the same at every call; 1 for a scalar."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.ones_like(y) if y.dim() == 0 else torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator))
        for y in (y.detach() for y in outputs)
    ]
