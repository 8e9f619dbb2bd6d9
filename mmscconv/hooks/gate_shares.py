"""The share of informative positions of every SRU, during training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmscconv.hooks.unwrapped import model_of
from mmscconv.paper.measures import record_gate_shares


@HOOKS.register_module()
class GateShares(Hook):
    """Logs each SRU's share of positions with W > threshold, and warns when a gate collapses.

    The shares go to the visualizer's backends (``scalars.json``, TensorBoard, ...)
    as ``gate/<name of the SRU>``, in [0, 1], measured on the iteration's own batch.
    A gate has collapsed when its share is 0 or 1: it then separates nothing. Gates
    whose threshold leaves no other share (0 or less, 1 or more) are not warned of.

    Args:
        interval: Iterations between two measurements; the others cost nothing.
            The default of 100 is our choice.

    Raises:
        ValueError: An ``interval`` less than 1.
    """

    def __init__(self, interval: int = 100) -> None:
        if interval < 1:
            raise ValueError(f'interval must be positive, got interval={interval}')
        self.interval = interval
        self._recording = ExitStack()
        self._shares: dict[str, float] = {}
        self._collapsed: set[str] = set()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._shares = self._recording.enter_context(record_gate_shares(model_of(runner)))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self.every_n_train_iters(runner, self.interval):
            return
        self._recording.close()
        if not self._shares:
            return
        scalars = {f'gate/{name}': share for name, share in self._shares.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        self._warn(runner)

    def _warn(self, runner: Runner) -> None:
        """Warn in one line, and only once while a gate stays collapsed."""
        modules = dict(model_of(runner).named_modules())
        collapsed = [n for n, share in self._shares.items() if share in (0, 1) and 0 < modules[n].threshold < 1]
        if set(collapsed) - self._collapsed:
            names = ', '.join(f'{name} ({self._shares[name]:.0%} informative)' for name in collapsed)
            runner.logger.warning(f'SRU gates have collapsed at iteration {runner.iter + 1}: {names}')
        self._collapsed = set(collapsed)
