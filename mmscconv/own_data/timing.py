"""Estimated time of a training on this machine, from a few timed steps."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmscconv.engine.runner import CheckedRunner
from mmscconv.foreign_errors import explained

PATIENCE = 8  # seconds, after which no further step is timed
MOST_STEPS = 6


@dataclass(frozen=True)
class StepTimes:
    """Measured seconds.

    Args:
        step: Seconds of a training iteration, its batch loaded.
        val_image: Seconds of an image in validation.
        device: Where.
    """

    step: float
    val_image: float
    device: str


def time_steps(config: Path) -> StepTimes:
    """Time training steps and a validation batch of a config, in this process; the first of each is not counted.

    Raises:
        UserError: The config's model or data sets cannot be built.
    """
    cfg = Config.fromfile(config)
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        import mmscconv.models  # noqa: F401, registers the backbones

        init_default_scope(cfg.default_scope)
        with explained(f'cannot build what {config} asks for'):
            model = MODELS.build(cfg.model).to(get_device())
            train, val = (_loader(cfg[f'{name}_dataloader']) for name in ('train', 'val'))
            optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        step = _seconds(train, lambda batch: model.train_step(batch, optimizer))
        model.eval()
        with torch.no_grad():
            val_batch = _seconds(val, model.val_step)
    return StepTimes(step, val_batch / val.batch_size, get_device())


def _loader(dataloader: Any) -> Any:
    return CheckedRunner.build_dataloader({**dataloader, 'num_workers': 0, 'persistent_workers': False})


def _seconds(loader: Any, step: Callable[[Any], Any]) -> float:
    """Return the mean time of loading a batch and of one step, without the first, which warms up."""
    batches = chain.from_iterable(repeat(loader))
    begin = time.perf_counter()
    timed: list[float] = []
    while len(timed) < 2 or (len(timed) < MOST_STEPS and time.perf_counter() - begin < PATIENCE):
        start = time.perf_counter()
        step(next(batches))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        timed.append(time.perf_counter() - start)
    return sum(timed[1:]) / (len(timed) - 1)


def in_words(seconds: float) -> str:
    """Return a rounded time such as 'about 12 min'."""
    for unit, length in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * length:
            return f'about {seconds / length:.0f} {unit}'
    return f'about {max(1, round(seconds))} s'
