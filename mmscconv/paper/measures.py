"""Measures of the paper's claims: redundancy of channels, and SRU's gate. Needs torch alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmscconv.layers import SRU


def channel_redundancy(features: Tensor) -> float:
    """Return the mean absolute correlation between pairs of channels, averaged over images.

    0: the channels are uncorrelated; 1: each is a linear function of every other.
    A channel that is constant over an image has no correlation and is left out for
    that image; NaN if every image has fewer than two other channels.

    Shape:
        (N, C, H, W).

    Raises:
        ValueError: ``features`` is not 4-D.
    """
    if features.dim() != 4:
        raise ValueError(f'features must be (N, C, H, W), got shape {tuple(features.shape)}')
    values = []
    for image in features.flatten(2).double():
        centred = image - image.mean(dim=1, keepdim=True)
        norm = centred.norm(dim=1)
        alive = norm > 1e-7 * image.norm(dim=1)  # after rounding, a constant channel has a small variance
        unit = centred[alive] / norm[alive].unsqueeze(1)
        count = len(unit)
        if count > 1:
            total = (unit @ unit.T).abs().sum() - count  # the diagonal is 1
            values.append(total / (count * (count - 1)))
    return torch.stack(values).mean().item() if values else float('nan')


@contextmanager
def record_gate_shares(model: nn.Module) -> Iterator[dict[str, float]]:
    """Record, while in the context, each SRU's share of informative positions (W > threshold).

    Yields:
        Each SRU's name and share, in [0, 1] of all channels and positions of all its inputs so far, such as the levels
        of a pyramid; filled by the model's forward, empty if the model has no SRU.
    """
    srus = {name: module for name, module in model.named_modules() if isinstance(module, SRU)}
    informative: Counter[nn.Module] = Counter()
    positions: Counter[nn.Module] = Counter()

    def share(sru: SRU, x: Tensor, _: Tensor) -> float:
        informative[sru] += int(sru.informative(sru.logit(x)).sum().item())
        positions[sru] += x.numel()
        return informative[sru] / positions[sru] if positions[sru] else float('nan')

    with _recorded(srus, share) as shares:
        yield shares


@contextmanager
def record_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record, while in the context, the last output of each of ``modules`` under its name."""
    with _recorded(modules, lambda module, x, y: y) as outputs:
        yield outputs


@contextmanager
def _recorded(
    modules: Mapping[str, nn.Module], measure: Callable[[Any, Tensor, Tensor], Any]
) -> Iterator[dict[str, Any]]:
    values: dict[str, Any] = {}

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(f'{name} gives a {type(output).__name__} of maps, not one map')
        with torch.no_grad():
            values[name] = measure(module, inputs[0].detach(), output.detach())

    handles = [module.register_forward_hook(partial(hook, name)) for name, module in modules.items()]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()
