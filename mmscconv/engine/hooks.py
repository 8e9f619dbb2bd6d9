"""Hooks that the tools add to every run."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmscconv.engine.errors import UserError


class NameBrokenFiles(Hook):
    """Turns a failure while loading an image or its annotation into one line with the file's name."""

    def before_train(self, runner: Runner) -> None:
        _wrap_loading(runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        _wrap_loading(runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        _wrap_loading(runner.test_dataloader.dataset)


class _NamedLoading:
    """A transform that names the image when the transform it wraps fails."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self.transform(results)
        except Exception as error:
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise UserError(
                f'cannot load {results.get("img_path")}: {reason} (restore the file, or take it out of the annotations)'
            ) from error

    def __repr__(self) -> str:
        return repr(self.transform)


def _wrap_loading(dataset: Any) -> None:
    for inner in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        if inner is not None:
            _wrap_loading(inner)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    for i, transform in enumerate(transforms):
        if type(transform).__name__.startswith('Load'):
            transforms[i] = _NamedLoading(transform)


class RequireMatchingCheckpoint(Hook):
    """Refuses to test a model with a checkpoint that does not fill it, instead of testing random weights."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # A TTA model holds the detector as its own attribute 'module'.
        want = {k.removeprefix('module.'): tuple(v.shape) for k, v in model.state_dict().items()}
        state = checkpoint.get('state_dict', checkpoint)
        have = {k.removeprefix('module.'): tuple(getattr(v, 'shape', ())) for k, v in state.items()}
        missing = [k for k in want if k not in have]
        unexpected = [k for k in have if k not in want]
        mismatched = [f'{k} {have[k]} instead of {want[k]}' for k in want if k in have and have[k] != want[k]]
        if missing or mismatched:
            lists = [('missing', missing), ('of another shape', mismatched), ('not in the model', unexpected)]
            found = '; '.join(f'{len(keys)} {what}, first {keys[0]}' for what, keys in lists if keys)
            raise UserError(f'the checkpoint is not of this model (other depth, alpha or config?): {found}')


class DeployForm(Hook):
    """Tests a model in its deploy form, into which it is brought once its checkpoint is loaded."""

    def before_test(self, runner: Runner) -> None:
        from mmscconv.models import switch_to_deploy

        switch_to_deploy(runner.model)
