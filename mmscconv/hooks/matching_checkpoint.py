"""The hook that compares a loaded checkpoint with the model; the tools add it to every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmscconv.checks.classes import check_checkpoint_classes
from mmscconv.errors import UserError, warn
from mmscconv.hooks.unwrapped import model_of
from mmscconv.storage.checkpoint_match import differences, optimizer_problem, require_filled, schedule_without_effect


class RequireMatchingCheckpoint(Hook):
    """Refuses a checkpoint of another model, instead of continuing with random weights.

    Args:
        purpose: ``'test'`` and ``'resume'`` need every weight, ``'resume'`` also the
            state of the same optimizer. ``'start'``, a training's ``load_from``, needs
            one weight, as a head for other classes is usual; the rest is one warning.
    """

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = model_of(runner)
        path = runner.cfg.get('load_from') or f'the latest in {runner.work_dir}'
        unfilled, found = differences(model, checkpoint)
        if self.purpose != 'start' or unfilled == len(model.state_dict()):
            require_filled(model, checkpoint, runner.cfg, path)
        elif unfilled:
            warn(f'the checkpoint fills a part of the model only: {path}: {found}')
        classes = _classes_of(runner, 'test' if self.purpose == 'test' else 'train')
        if classes is not None:
            check_checkpoint_classes(checkpoint, classes, path, must_fit=self.purpose != 'start')
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if self.purpose == 'resume' and optimizer is not None:
            problem = optimizer_problem(optimizer, checkpoint)
            if problem:
                raise UserError(f'the checkpoint cannot be resumed: {path}: {problem}')
            ignored = schedule_without_effect(checkpoint, runner.cfg)
            if ignored:
                warn(f'a resumed training goes on with the optimizer and schedule of {path}: {ignored}')


def _classes_of(runner: Runner, stage: str) -> Sequence[str] | None:
    """Return the classes of a stage's data set, None if it has none."""
    loader = getattr(getattr(runner, f'{stage}_loop', None), 'dataloader', None)
    return getattr(getattr(loader, 'dataset', None), 'metainfo', {}).get('classes')
