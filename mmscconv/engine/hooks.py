"""Hooks that the tools add to every run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmscconv.engine.checkpoints import require_matching
from mmscconv.engine.errors import UserError


class NameBrokenFiles(Hook):
    """Turns a failure while loading an image or its annotation into one line with the file's name."""

    def before_train(self, runner: Runner) -> None:
        name_broken_files(runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        name_broken_files(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        name_broken_files(runner.test_dataloader.dataset)


class _NamedLoading:
    """A transform that names the image when the transform it wraps fails."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: dict) -> dict | None:
        try:
            return self.transform(results)
        except Exception as error:
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise UserError(
                f'cannot load {results.get("img_path")}: {reason} (restore the file, or take it out of the annotations)'
            ) from error

    def __repr__(self) -> str:
        return repr(self.transform)


def name_broken_files(dataset: Any) -> None:
    """Let ``dataset``, through any wrappers, name the image that cannot be loaded."""
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            name_broken_files(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    for i, transform in enumerate(transforms):
        if type(transform).__name__.startswith('Load'):
            transforms[i] = _NamedLoading(transform)


class RequireMatchingCheckpoint(Hook):
    """Refuses to test a model with a checkpoint that does not fill it, instead of testing random weights."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        require_matching(runner.model.module if is_model_wrapper(runner.model) else runner.model, checkpoint)


class DeployForm(Hook):
    """Tests a model in its deploy form, into which it is brought once its checkpoint is loaded."""

    def before_test(self, runner: Runner) -> None:
        from mmscconv.models import switch_to_deploy

        switch_to_deploy(runner.model)
