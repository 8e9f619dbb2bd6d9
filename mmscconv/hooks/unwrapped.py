"""The model of a runner without the wrapper of distributed training."""

from __future__ import annotations

from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner


def model_of(runner: Runner) -> BaseModel:
    """Return the model of ``runner``, out of its wrapper if it has one."""
    model: BaseModel = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model
