"""A hook that tests a model in its deploy form."""

from __future__ import annotations

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmscconv.models.deploy import switch_to_deploy


class DeployForm(Hook):
    """Brings the model into its deploy form once its checkpoint is loaded, before the test."""

    def before_test(self, runner: Runner) -> None:
        # A test's checkpoint has the averaged weights in the model's place; the hook would pair those of two forms.
        runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, EMAHook)]
        switch_to_deploy(runner.model)
