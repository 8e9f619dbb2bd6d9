"""The model type 'ReplaceConv': SCConv in any model, from its config alone."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import nn

from mmscconv.replace.select import Match
from mmscconv.replace.swap import replace_conv


@MODELS.register_module(name='ReplaceConv')
def build_with_replaced_convs(
    model: str | dict[str, Any],
    conv_cfg: dict[str, Any],
    match: Match = None,
    min_kernel: int = 3,
    min_channels: int = 1,
    **settings: Any,
) -> nn.Module:
    """Build ``model``, replace its convolutions, and return that model itself.

    No hook could do this: mmengine's Runner builds the optimizer before it calls the
    first hook. Training, testing, inference and checkpoints see the plain model with
    other layers; ``init_weights`` and pretrained weights for the rest come afterwards,
    as usual.

    In a config that inherits another one, give the inherited model's type as
    ``model``; its settings stay where they are::

        model = dict(
            type='ReplaceConv', model='FasterRCNN', conv_cfg=dict(type='SCConv'), match='backbone.*',
            backbone=dict(frozen_stages=-1, norm_eval=False),
        )

    Mind mmdet's defaults for backbones: stages that ``frozen_stages`` freezes are
    skipped, and ``norm_eval=True`` would freeze the statistics of SCConv's inner
    norms. Leave prediction layers out by ``match``: their heads initialize them by
    name, new layers included.

    Args:
        model: Name of the model's type, or its whole config.
        conv_cfg, match, min_kernel, min_channels: Arguments of :func:`mmscconv.replace_conv`.
        **settings: Of the model, if ``model`` is a name.

    Returns:
        The model, an ``nn.Module`` of its own type.

    Raises:
        ValueError: Settings besides a whole config, and every error of ``replace_conv``.
    """
    if isinstance(model, str):
        model = dict(type=model, **settings)
    elif settings:
        raise ValueError(f'ReplaceConv: {", ".join(settings)} must stand inside of model, or model be a name')
    built = MODELS.build(model)
    print_log(str(replace_conv(built, conv_cfg, match, min_kernel, min_channels)), logger='current')
    return built
