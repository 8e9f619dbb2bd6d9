"""A hook that tests a model in its deploy form."""

from __future__ import annotations

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmscconv.models.deploy import switch_to_deploy


class DeployForm(Hook):
    """Brings the model into its deploy form once its checkpoint is loaded, before the test."""

    def before_test(self, runner: Runner) -> None:
        averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in averages:  # put the averaged weights into the model, as before each test
            hook.before_test_epoch(runner)
        # Later they would exchange weights of two forms.
        runner._hooks = [hook for hook in runner.hooks if hook not in averages]
        switch_to_deploy(runner.model)
