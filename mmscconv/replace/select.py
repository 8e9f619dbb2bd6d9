"""Selection of a model's convolutions, and the reasons why some cannot be replaced."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeGuard

from torch import nn

from mmscconv.layers.hooked import has_own_forward, is_hooked
from mmscconv.layers.intact import methods_of, other_method

Match = str | Sequence[str] | Callable[[str, nn.Module], bool] | None

CONV_ATTRIBUTES = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
REGEX_PREFIX = 're:'
METHODS = methods_of(nn.Conv2d)
GROUPS = (list, tuple, set)
# By their names: the import of FSDP takes long, and fully_shard makes subclasses.
WRAPPERS = ('DistributedDataParallel', 'FullyShardedDataParallel', 'FSDPModule')


class AnyConv(nn.Module):
    """For annotations alone: a module of any class with the attributes that :func:`is_conv` asks for."""

    in_channels: int
    out_channels: int
    kernel_size: Any  # one integer or several
    groups: int


@dataclass
class FoundConv:
    """A convolution, plain or not, with every place in the model where it stands."""

    module: AnyConv
    names: list[str] = field(default_factory=list)
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.names[0]


def find_convs(model: nn.Module, match: Match, min_kernel: int, min_channels: int) -> tuple[list[FoundConv], str]:
    """Return the selected convolutions and one line that describes all that the model has.

    Every module with ``nn.Conv2d``'s attributes is a convolution, SCConv and deformable
    convolutions included; the modules inside such a layer are not searched.

    Raises:
        ValueError: ``model`` is itself a convolution; a broken regular expression.
        TypeError: ``match`` is of another kind than allowed.
    """
    if is_conv(model):
        raise ValueError(
            f'the model is itself a {type(model).__name__}, which cannot be replaced in place: pass the module that '
            'holds it, or build the new layer directly, as in SCConv(in_channels, out_channels, kernel_size)'
        )
    accepts = _name_test(match)
    convs = _all_convs(model)
    chosen = [
        conv
        for conv in convs
        if min(_sizes(conv.module)) >= min_kernel
        and min(conv.module.in_channels, conv.module.out_channels) >= min_channels
        and any(accepts(name, conv.module) for name in conv.names)
    ]
    return chosen, _describe(convs)


def is_conv(module: nn.Module) -> TypeGuard[AnyConv]:
    """Return whether ``module`` has a convolution's attributes of its own."""
    # mmcv's ConvModule shows its convolution's attributes; conv_cfg tells it apart.
    return all(hasattr(module, name) for name in CONV_ATTRIBUTES) and not hasattr(module, 'conv_cfg')


def shared_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that several modules of ``model`` hold."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {key for key, count in owners.items() if count > 1}


def held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Return where modules hold others outside of their children, as in ``'Net.steps'``, by the id of the one held."""
    found: dict[int, str] = {}
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name == '_modules':
                continue
            values = value.values() if isinstance(value, dict) else value if isinstance(value, GROUPS) else (value,)
            found |= {id(v): f'{type(module).__name__}.{name}' for v in values if isinstance(v, nn.Module)}
    return found


def check_not_wrapped(model: nn.Module) -> None:
    """Raise ValueError if ``model`` is or has a module that averages gradients of the parameters that it found."""
    for name, module in model.named_modules():
        for cls in type(module).__mro__:
            if cls.__name__ in WRAPPERS and cls.__module__.startswith('torch.'):
                raise ValueError(
                    f'{name or "the model"} is wrapped in {cls.__name__}, which would not average the gradients of new '
                    'layers: call replace_conv first, and wrap the model afterwards'
                )


def obstacle(conv: nn.Module, shared: Collection[int], held: Mapping[int, str]) -> str | None:
    """Return why no other layer can stand in for ``conv``, or None.

    Args:
        conv: A convolution of the model.
        shared, held: As from :func:`shared_parameters` and :func:`held_elsewhere`.
    """
    if type(conv) is not nn.Conv2d:
        return f'{type(conv).__name__} is not a plain nn.Conv2d'
    if conv.groups > 1:
        return 'depthwise' if conv.groups == conv.in_channels else f'grouped, groups={conv.groups}'
    if conv.padding_mode != 'zeros':
        return f'padding_mode={conv.padding_mode!r}'
    if has_own_forward(conv) or other_method(conv, METHODS):
        return 'its forward was replaced, which would be lost'
    if is_hooked(conv):
        return 'it has hooks, which would be lost'
    if not conv.weight.requires_grad:
        return 'frozen, a new layer in its place would stay random'
    if any(id(p) in shared for p in conv.parameters()):
        return 'it shares its parameters with another layer'
    if id(conv) in held:
        return f'the model also holds it in {held[id(conv)]}, where the old one would run on'
    return None


def _all_convs(model: nn.Module) -> list[FoundConv]:
    found: dict[int, FoundConv] = {}
    visited: set[int] = set()

    def walk(parent: nn.Module, prefix: str) -> None:
        is_new = id(parent) not in visited
        visited.add(id(parent))
        for attribute, child in parent._modules.items():  # named_children() leaves out repeats
            if child is None:
                continue
            name = f'{prefix}{attribute}'
            if not is_conv(child):
                walk(child, f'{name}.')
                continue
            conv = found.setdefault(id(child), FoundConv(child))
            conv.names.append(name)
            if is_new:
                conv.places.append((parent, attribute))

    walk(model, '')
    return list(found.values())


def _sizes(conv: AnyConv) -> tuple[int, ...]:
    return (conv.kernel_size,) if isinstance(conv.kernel_size, int) else tuple(conv.kernel_size)


def _describe(convs: Sequence[FoundConv]) -> str:
    if not convs:
        return 'The model has no convolution at all.'
    names: dict[str, list[str]] = {}
    for conv in convs:
        kind = f'{type(conv.module).__name__} {"x".join(map(str, _sizes(conv.module)))}'
        if conv.module.groups > 1:
            kind += ' depthwise' if conv.module.groups == conv.module.in_channels else ' grouped'
        names.setdefault(kind, []).append(conv.name)
    kinds = [f'{len(group)} {kind} ({group[0]}{", ..." if len(group) > 1 else ""})' for kind, group in names.items()]
    return f'The model has {", ".join(kinds)}.'


def _name_test(match: Match) -> Callable[[str, nn.Module], bool]:
    if match is None:
        return lambda name, conv: True
    if isinstance(match, str):
        if match.startswith(REGEX_PREFIX):
            try:
                pattern = re.compile(match.removeprefix(REGEX_PREFIX))
            except re.error as error:
                raise ValueError(f'match={match!r} is not a regular expression: {error}') from error
            return lambda name, conv: pattern.fullmatch(name) is not None
        return lambda name, conv: fnmatchcase(name, match)
    if callable(match):
        return match
    if isinstance(match, Sequence) and all(isinstance(part, str) for part in match):
        tests = [_name_test(part) for part in match]
        return lambda name, conv: any(test(name, conv) for test in tests)
    raise TypeError(f'match must be a glob, a regular expression, a sequence of these or a function, got {match!r}')
