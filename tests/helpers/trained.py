"""Values that training might give, and how far two answers are apart."""

from torch import nn


def trained(model):
    """Give norms the weights and statistics that training might."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(m.weight, 0.3, 2.0)
            nn.init.normal_(m.bias, 0, 0.3)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.3, 3)
    model.eval()
    return model


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()
