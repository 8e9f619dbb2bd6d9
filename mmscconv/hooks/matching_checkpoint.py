"""The hook that compares a loaded checkpoint with the model; the tools add it to every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmscconv.checks.classes import check_checkpoint_classes
from mmscconv.errors import UserError, warn
from mmscconv.hooks.unwrapped import model_of
from mmscconv.storage.checkpoint_match import (
    averages_problem,
    differences,
    optimizer_problem,
    other_steps,
    require_filled,
    schedule_without_effect,
    value_in,
)
from mmscconv.storage.checkpoints import require_finite, weights_of

IMAGES = 'images_per_step'  # in the message hub: those for which learning rate and schedule were made


def images_per_step(cfg: Mapping[str, Any]) -> int:
    """Return the number of images in a step of the optimizer: batch x accumulated batches x devices."""
    batch: int = cfg['train_dataloader'].get('batch_size') or 1
    counts: int = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    return batch * counts * get_world_size()


class RequireMatchingCheckpoint(Hook):
    """Refuses a checkpoint of another model, instead of continuing with random weights.

    Also tells a resumed training's settings that have no effect, or change it from there on.

    Args:
        purpose: ``'test'`` and ``'resume'`` need every weight, ``'resume'`` also the
            state of the same optimizer. ``'start'``, a training's ``load_from``, needs
            one weight, as a head for other classes is usual; the rest is one warning.
    """

    priority = 'VERY_HIGH'  # EMAHook loads the checkpoint itself, and would fail first

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose

    def before_train(self, runner: Runner) -> None:
        if not runner.iter:  # a resumed training keeps the number that its schedule was made for
            runner.message_hub.update_info(IMAGES, images_per_step(runner.cfg))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = model_of(runner)
        path = runner.cfg.get('load_from') or f'the latest in {runner.work_dir}'
        if 'state_dict' not in checkpoint:  # weights alone; EMAHook looks nowhere else
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        unfilled, found = differences(model, checkpoint)
        if self.purpose != 'start' or unfilled == len(model.state_dict()):
            require_filled(model, checkpoint, runner.cfg, path)
        else:
            require_finite(path, weights_of(checkpoint, path))
            if unfilled:
                warn(f'the checkpoint fills a part of the model only: {path}: {found}')
        classes = _classes_of(runner, 'test' if self.purpose == 'test' else 'train')
        if classes is not None:
            check_checkpoint_classes(checkpoint, classes, path, must_fit=self.purpose != 'start')
        if self.purpose == 'resume':
            _require_resumable(runner, checkpoint, path)
            for line in _changes(checkpoint, runner.cfg, path):
                warn(line)


def _require_resumable(runner: Runner, checkpoint: dict[str, Any], path: str) -> None:
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    averaging = any(isinstance(hook, EMAHook) for hook in runner.hooks)
    problem = None if averaging else averages_problem(checkpoint)
    if problem is None and optimizer is not None:
        problem = optimizer_problem(optimizer, checkpoint)
    if problem:
        raise UserError(f'the checkpoint cannot be resumed: {path}: {problem}')


def _changes(checkpoint: Mapping[str, Any], cfg: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield lines on settings that differ from the checkpoint's: of the optimizer, its steps, and their images."""
    ignored = schedule_without_effect(checkpoint, cfg)
    if ignored:
        yield f'a resumed training goes on with the optimizer and schedule of {path}: {ignored}'
    steps = other_steps(checkpoint, cfg)
    if steps:
        yield f'the training of {path} had other settings of its steps, which change from here on: {steps}'
    hub = checkpoint.get('message_hub')
    theirs = (hub.get('runtime_info') or {}).get(IMAGES) if isinstance(hub, Mapping) else None
    ours, scaled = images_per_step(cfg), (cfg.get('auto_scale_lr') or {}).get('enable')
    if theirs and theirs != ours:
        yield (
            f'the training of {path} has made steps of {theirs} images, and makes steps of {ours} from here on: its '
            f'learning rate and schedule stay those for {theirs}'
            + (' (--auto-scale-lr has no effect on a resumed training)' if scaled else '')
        )
    elif scaled and not (value_in(checkpoint, 'auto_scale_lr') or {}).get('enable'):
        yield f'--auto-scale-lr has no effect: a resumed training goes on with the learning rate of {path}'


def _classes_of(runner: Runner, stage: str) -> Sequence[str] | None:
    """Return the classes of a stage's data set, None if it has none."""
    loader = getattr(getattr(runner, f'{stage}_loop', None), 'dataloader', None)
    return getattr(getattr(loader, 'dataset', None), 'metainfo', {}).get('classes')
