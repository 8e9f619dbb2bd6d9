"""A hook that tests a model in its deploy form."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmscconv.models.deploy import switch_to_deploy


class DeployForm(Hook):
    """Brings the model into its deploy form once its checkpoint is loaded, before the test."""

    def before_test(self, runner: Runner) -> None:
        switch_to_deploy(runner.model)
