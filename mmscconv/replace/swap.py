"""Replacement of the convolutions of a finished model by SCConv or any other conv layer.

Needs neither the model's code nor its config; imports torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmscconv.layers import SCConv
from mmscconv.replace.like import arguments_like
from mmscconv.replace.select import (
    FoundConv,
    Match,
    check_not_wrapped,
    find_convs,
    held_elsewhere,
    obstacle,
    shared_parameters,
)

ConvCfg = Mapping[str, Any] | Callable[..., nn.Module]


@dataclass(frozen=True)
class Replacement:
    """The result of :func:`replace_conv`.

    Args:
        layer: Name of the new layers' type.
        replaced: Names of the replaced convolutions.
        skipped: Names of selected convolutions that stayed, each with the reason.
    """

    layer: str
    replaced: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f'Conv2d replaced by {self.layer}: {len(self.replaced)}']
        lines += [f'  {name}' for name in self.replaced]
        return '\n'.join([*lines, *_reasons(self.skipped)])


def replace_conv(
    model: nn.Module, conv_cfg: ConvCfg, match: Match = None, min_kernel: int = 3, min_channels: int = 1
) -> Replacement:
    """Replace the matching ``nn.Conv2d`` of ``model`` in place.

    The new layer gets the old one's channels, kernel size, stride, padding,
    dilation and bias setting, its device, dtype and train/eval mode. It does NOT
    get its weights: SCConv's have other shapes, so a pretrained model must be
    trained again. Build the optimizer afterwards: it must see the new parameters.

    Convolutions are selected by their name and by a least kernel size and channel
    count. Of those, only plain, dense ``nn.Conv2d`` can be replaced: grouped,
    depthwise, transposed and deformable ones, subclasses with their own behaviour,
    other padding than zeros, hooked, frozen and weight-tied ones stay, as do those
    whose settings the new layer refuses, and those that a module also holds in an
    attribute, list, tuple, set or dict of its own. A module that stands in several
    places is replaced by one new module in all of them.

    Args:
        model: Any module that contains convolutions.
        conv_cfg: ``dict(type='SCConv', alpha=0.5, ...)``, or a class or function called
            as ``f(in_channels, out_channels, kernel_size, stride=, padding=, dilation=, bias=)``;
            a class may also be the dict's ``type``. Other names than ``'SCConv'`` are looked
            up in mmengine's registry, where ``import mmscconv.models`` or the user's
            module has put them.
        match: None for every name; a glob such as ``'backbone.layer[34].*'``; a regular
            expression behind ``'re:'``, which must match the whole name; a sequence of
            these, one of which must match; or a function ``(name, conv) -> bool``.
        min_kernel: Least height and width of the kernel.
        min_channels: Least number of input and of output channels.

    Returns:
        Names of replaced and of skipped convolutions, with reasons; ``print`` shows them line by line.

    Raises:
        ValueError: No convolution is selected, or none of those selected can be
            replaced (the message lists the model's convolutions or the reasons); an
            unknown ``type``; a ``model`` that is itself a convolution, or that is or
            contains DistributedDataParallel or FSDP.
        TypeError: Settings that the new layer does not have, or a ``conv_cfg`` that
            makes no ``nn.Module``. After any error the model is as it was.
    """
    check_not_wrapped(model)
    name, make = _maker(conv_cfg)
    found, others = find_convs(model, match, min_kernel, min_channels)
    if not found:
        raise ValueError(f'no convolution is selected by match={match!r}, {min_kernel=}, {min_channels=}. {others}')
    new: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    shared, held = shared_parameters(model), held_elsewhere(model)
    for conv in found:
        reason = obstacle(conv.module, shared, held)
        if reason is None:
            assert isinstance(conv.module, nn.Conv2d)  # all else is an obstacle
            try:
                new[conv.name] = _like(conv.module, make, name)
            except (AssertionError, ValueError) as error:
                reason = f'{name} refuses it: {error}'
        if reason is not None:
            skipped[conv.name] = reason
    if not new:
        raise ValueError(
            f'none of the selected convolutions can be replaced by {name}: {"; ".join(_reasons(skipped, most=3))}'
        )
    _put(found, new)
    return Replacement(name, tuple(new), skipped)


def _maker(conv_cfg: ConvCfg) -> tuple[str, Callable[..., nn.Module]]:
    """Return the new layer's name and the function that makes it."""
    if not isinstance(conv_cfg, Mapping):
        if not callable(conv_cfg):
            raise TypeError(f"conv_cfg must be a dict such as dict(type='SCConv') or callable, got {conv_cfg!r}")
        return getattr(conv_cfg, '__name__', repr(conv_cfg)), conv_cfg
    settings = dict(conv_cfg)
    kind = settings.pop('type', None)
    if kind == 'SCConv':
        kind = SCConv
    elif isinstance(kind, str):
        kind = _registered(kind)
    if not callable(kind):
        raise TypeError(f'conv_cfg needs a type, a name or a class, got {dict(conv_cfg)}')
    return getattr(kind, '__name__', repr(kind)), lambda *args, **kwargs: kind(*args, **kwargs, **settings)


def _registered(kind: str) -> Callable[..., nn.Module]:
    try:
        from mmengine.registry import MODELS
    except ImportError as error:
        raise ValueError(
            f"unknown conv type {kind!r}: without mmengine only 'SCConv' and classes can be given"
        ) from error
    layer = MODELS.get(kind)
    if layer is None:
        raise ValueError(
            f"unknown conv type {kind!r}: 'SCConv' and classes always work, a registered name only once the module "
            'that registers it was imported (import mmscconv.models, or custom_imports of a config)'
        )
    return layer


def _like(conv: nn.Conv2d, make: Callable[..., nn.Module], name: str) -> nn.Module:
    try:
        arguments, window = arguments_like(conv)
        new = make(*arguments, **window, bias=conv.bias is not None)
    except TypeError as error:
        raise TypeError(f'{name} cannot be made with these settings: {error}') from error
    if not isinstance(new, nn.Module):
        raise TypeError(f'conv_cfg must make an nn.Module, {name} made a {type(new).__name__}')
    channels = getattr(new, 'out_channels', conv.out_channels)
    if channels != conv.out_channels:
        raise ValueError(f'it returns {channels} channels instead of {conv.out_channels}')
    return new.to(device=conv.weight.device, dtype=conv.weight.dtype).train(conv.training)


def _put(found: Sequence[FoundConv], new: Mapping[str, nn.Module]) -> None:
    for conv in found:
        if conv.name in new:
            for parent, attribute in conv.places:
                setattr(parent, attribute, new[conv.name])


def _reasons(skipped: Mapping[str, str], most: int | None = None) -> list[str]:
    """Return one line for each reason, with the names it applies to, or the first ``most`` of them."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        names.setdefault(reason, []).append(name)
    return [
        f'{len(group)} skipped, {reason}: {", ".join(group[:most])}{", ..." if len(group[:most]) < len(group) else ""}'
        for reason, group in names.items()
    ]
