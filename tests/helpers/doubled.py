"""Subclasses of torch's modules whose own forward gives twice the result, as fake quantization has one."""

from torch import nn


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledNorm(nn.GroupNorm):
    def forward(self, x):
        return 2 * super().forward(x)
