"""Training and testing in the channels_last memory format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmscconv.errors import warn

OF_MMCV = 'mmcv.ops'


@HOOKS.register_module()
class ChannelsLast(Hook):
    """Puts the model's weights into channels_last, which makes convolutions keep their outputs in it.

    Results stay the same, but for rounding. A model with a module of ``mmcv.ops`` (deformable convolution, RoIAlign,
    ...) stays as it is, with a warning: their CPU code reads maps as channels first, whatever their format is.

    Args:
        devices: Types of device on which to do so. On a CPU, SCConv's joined kernels need it, and plain convolutions
            gain from it, except those of few channels that fill no vector: 12 channels take up to twice as long.
    """

    def __init__(self, devices: Sequence[str] = ('cuda', 'cpu')) -> None:
        self.devices = tuple(devices)
        self._warned = False

    def before_train(self, runner: Runner) -> None:
        self._convert(runner)

    def before_val(self, runner: Runner) -> None:
        self._convert(runner)

    def before_test(self, runner: Runner) -> None:
        self._convert(runner)

    def _convert(self, runner: Runner) -> None:
        if next(runner.model.parameters()).device.type not in self.devices:
            return
        names = [name for name, module in runner.model.named_modules() if type(module).__module__.startswith(OF_MMCV)]
        if not names:
            runner.model.to(memory_format=torch.channels_last)
        elif not self._warned:
            self._warned = True
            warn(f'the model stays in channels first, for {names[0]} is of {OF_MMCV}, which reads no other format')
