"""Training and testing in the channels_last memory format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ChannelsLast(Hook):
    """Puts the model's weights into channels_last, which makes convolutions keep their outputs in it.

    Results stay the same, but for rounding.

    Args:
        devices: Types of device on which to do so. On a CPU, SCConv's joined kernels need it, and plain convolutions
            gain from it, except those of few channels that fill no vector: 12 channels take up to twice as long.
    """

    def __init__(self, devices: Sequence[str] = ('cuda', 'cpu')) -> None:
        self.devices = tuple(devices)

    def before_train(self, runner: Runner) -> None:
        self._convert(runner)

    def before_val(self, runner: Runner) -> None:
        self._convert(runner)

    def before_test(self, runner: Runner) -> None:
        self._convert(runner)

    def _convert(self, runner: Runner) -> None:
        if next(runner.model.parameters()).device.type in self.devices:
            runner.model.to(memory_format=torch.channels_last)
