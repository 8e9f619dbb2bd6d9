"""The popular unofficial ScConv once more, with its key names, from a description of what it computes.

Shares no code with the package: float64 loops over samples and groups where the
package has whole-tensor operations. The definition of correct for the legacy layers.
"""

import torch
from torch import nn


class OwnNorm(nn.Module):
    """Its GN: groups of values in a row, unbiased standard deviation, eps added to that."""

    def __init__(self, channels, groups):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.groups = groups

    def forward(self, x):
        rows = []
        for values in x.flatten(1):
            parts = [(p - p.mean()) / ((p - p.mean()).square().sum() / (len(p) - 1)).sqrt().add(1e-10)
                     for p in values.chunk(self.groups)]  # fmt: skip
            rows.append(torch.cat(parts).reshape(x.shape[1:]))
        return torch.stack(rows) * self.weight + self.bias


class ReferenceSRU(nn.Module):
    def __init__(self, channels, group_num, threshold, torch_gn):
        super().__init__()
        self.gn = nn.GroupNorm(group_num, channels) if torch_gn else OwnNorm(channels, group_num)
        self.threshold = threshold

    def forward(self, x):
        half = x.shape[1] // 2
        share = (self.gn.weight / self.gn.weight.sum()).reshape(-1, 1, 1)
        w = 1 / (1 + torch.exp(-self.gn(x) * share))
        w1, w2 = w.clone(), w.clone()
        w1[w > self.threshold], w2[w > self.threshold] = 1, 0
        x1, x2 = w1 * x, w2 * x
        return torch.cat([x1[:, :half] + x2[:, half:], x1[:, half:] + x2[:, :half]], 1)


class ReferenceCRU(nn.Module):
    def __init__(self, channels, alpha, squeeze, groups, kernel):
        super().__init__()
        self.up = int(alpha * channels)
        low = channels - self.up
        u, v = self.up // squeeze, low // squeeze
        self.squeeze1 = nn.Conv2d(self.up, u, 1, bias=False)
        self.squeeze2 = nn.Conv2d(low, v, 1, bias=False)
        self.GWC = nn.Conv2d(u, channels, kernel, padding=kernel // 2, groups=groups)
        self.PWC1 = nn.Conv2d(u, channels, 1, bias=False)
        self.PWC2 = nn.Conv2d(v, channels - v, 1, bias=False)

    def forward(self, x):
        up, low = self.squeeze1(x[:, : self.up]), self.squeeze2(x[:, self.up :])
        y1, y2 = self.GWC(up) + self.PWC1(up), torch.cat([self.PWC2(low), low], 1)
        e1, e2 = y1.mean((2, 3), True).exp(), y2.mean((2, 3), True).exp()
        total = e1.sum(1, True) + e2.sum(1, True)
        return (e1 * y1 + e2 * y2) / total


class ReferenceScConv(nn.Module):
    def __init__(self, channels, group_num=4, threshold=0.5, alpha=0.5, squeeze=2, groups=2, kernel=3, torch_gn=True):
        super().__init__()
        self.SRU = ReferenceSRU(channels, group_num, threshold, torch_gn)
        self.CRU = ReferenceCRU(channels, alpha, squeeze, groups, kernel)

    def forward(self, x):
        return self.CRU(self.SRU(x))


def fill(module, seed=0):
    """Give every parameter and statistic a value that training might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith('.weight') and p.dim() in (1, 3):
                p.uniform_(0.3, 1.7, generator=generator)
            elif name.endswith('.bias'):
                p.uniform_(-0.5, 0.5, generator=generator)
            else:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
        for m in module.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.uniform_(-0.01, 0.01, generator=generator)
                m.running_var.uniform_(0.001, 0.01, generator=generator)
    return module
