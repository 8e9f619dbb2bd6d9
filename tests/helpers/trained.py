"""Values that training might give, and how far two answers are apart."""

from torch import nn

from mmscconv import SCConv


def trained(model):
    """Put ``model`` into eval mode with biases, and norms with weights and statistics, that training might give."""
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.uniform_(m.weight, 0.3, 2.0)
            nn.init.normal_(m.bias, 0, 0.3)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.3, 3)
        if isinstance(m, SCConv) and m.bias is not None:
            nn.init.normal_(m.bias)
    model.eval()
    return model


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()
