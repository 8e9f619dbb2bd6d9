"""Weights of the popular unofficial ScConv module, renamed for this package's layers. Needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmscconv.legacy.layer import NUM_GROUPS

# The unofficial module's names, in its own order, and this package's.
NAMES = {
    'SRU.gn.weight': 'sru.gn.weight',
    'SRU.gn.bias': 'sru.gn.bias',
    'CRU.squeeze1.weight': 'cru.squeeze_up.weight',
    'CRU.squeeze2.weight': 'cru.squeeze_low.weight',
    'CRU.GWC.weight': 'cru.gwc.weight',
    'CRU.GWC.bias': 'cru.gwc.bias',
    'CRU.PWC1.weight': 'cru.pwc1.weight',
    'CRU.PWC2.weight': 'cru.pwc2.weight',
}
FORMS = ('legacy', 'paper')


@dataclass(frozen=True)
class FoundLayer:
    """An unofficial ScConv in a state dict, with the settings that follow from its shapes.

    Args:
        prefix: Start of the layer's keys: ``''``, or a name that ends with a dot.
        channels: C, of input and output.
        kernel_size: Kernel size of the GWC; odd.
        alpha: Share of the upper branch.
        squeeze_ratio: If several give these shapes, one that divides both branches.
        gwc_groups: Groups of the GWC.
        torch_gn: True for ``nn.GroupNorm``, False for the unofficial module's own norm.
    """

    prefix: str
    channels: int
    kernel_size: int
    alpha: float
    squeeze_ratio: int
    gwc_groups: int
    torch_gn: bool

    def conv_cfg(self, num_groups: int = NUM_GROUPS, form: str = 'legacy') -> dict[str, Any]:
        """Return the settings of the layer that takes the converted weights, as for ``conv_cfg``.

        Raises:
            ValueError: ``num_groups``, which no weight records, is impossible for these channels.
        """
        if num_groups < 1 or ((self.torch_gn or form == 'paper') and self.channels % num_groups):
            raise ValueError(
                f'{self.prefix}SRU.gn: {num_groups} groups do not divide {self.channels} channels: '
                'give the group_num that the network was trained with'
            )
        shared = dict(
            alpha=self.alpha, squeeze_ratio=self.squeeze_ratio, gwc_groups=self.gwc_groups, num_groups=num_groups
        )
        if form == 'paper':
            return dict(type='SCConv', **shared)
        return dict(type='LegacySCConv', **shared, torch_gn=self.torch_gn)


def convert_weights(
    state_dict: Mapping[str, Any], prefix: str = '', form: str = 'legacy', drop_gwc_bias: bool = False
) -> dict[str, Any]:
    """Return ``state_dict`` with the weights of every unofficial ScConv renamed for this package's layers.

    All other entries stay unchanged, in their order. Tensors are shared with
    ``state_dict``, not copied.

    ===============  =============================================================
    form             use of the result
    ===============  =============================================================
    ``'legacy'``     :class:`mmscconv.LegacySCConv`, which gives the same numbers
    ``'paper'``      :class:`mmscconv.SCConv`: the same weights, OTHER numbers. Its
                     softmax is the paper's, and it has no bias on the GWC. A start
                     for training on, not for inference.
    ===============  =============================================================

    Args:
        state_dict: State dict of a whole model, or of one unofficial ScConv.
        prefix: Convert only layers whose names begin with this prefix.
        form: ``'legacy'`` or ``'paper'``.
        drop_gwc_bias: With ``'paper'``, leave out biases of the GWC that are not zero.

    Raises:
        ValueError: No such layer; a layer, named, with missing keys or shapes that do
            not match; a name that is taken; a bias that would be lost.
    """
    if form not in FORMS:
        raise ValueError(f'form must be one of {FORMS}, got form={form!r}')
    renamed = {}
    for layer in find_layers(state_dict, prefix):
        for theirs, ours in NAMES.items():
            renamed[layer.prefix + theirs] = layer.prefix + ours
    converted: dict[str, Any] = {}
    for key, value in state_dict.items():
        if key not in renamed:
            converted[key] = value
            continue
        if renamed[key] in state_dict:
            raise ValueError(f'{key} would become {renamed[key]}, which exists already')
        if form == 'paper' and key.endswith('CRU.GWC.bias'):
            if value.any() and not drop_gwc_bias:
                raise ValueError(
                    f"{key} is not zero and has no place in SCConv: convert to the legacy form, or drop the GWC's "
                    'biases (drop_gwc_bias=True, --drop-gwc-bias)'
                )
            continue
        converted[renamed[key]] = value.reshape(-1) if '.gn.' in renamed[key] else value
    return converted


def find_layers(state_dict: Mapping[str, Any], prefix: str = '') -> list[FoundLayer]:
    """Return the unofficial ScConv modules whose names begin with ``prefix``; at least one.

    Raises:
        ValueError: As for :func:`convert_weights`.
    """
    prefixes = dict.fromkeys(
        start
        for key in state_dict
        for name in NAMES
        if key.endswith(name) and (start := key.removesuffix(name)).startswith(prefix) and start[-1:] in ('', '.')
    )
    if not prefixes:
        where = f' under {prefix!r}' if prefix else ''
        raise ValueError(
            f"no unofficial ScConv{where}: none of the {len(state_dict)} keys is called '...SRU.gn.weight' or "
            f"'...CRU.GWC.weight' (the first are {', '.join(list(state_dict)[:3]) or 'none'})"
        )
    return [_layer(state_dict, start) for start in prefixes]


def _layer(state_dict: Mapping[str, Any], prefix: str) -> FoundLayer:
    missing = [name for name in NAMES if prefix + name not in state_dict]
    if missing:
        raise ValueError(f'the layer {prefix!r} is incomplete, missing: {", ".join(prefix + n for n in missing)}')
    units = (f'{prefix}SRU.', f'{prefix}CRU.')
    unknown = [key for key in state_dict if key.startswith(units) and key.removeprefix(prefix) not in NAMES]
    if unknown:
        raise ValueError(f'{unknown[0]} is in no known version of the unofficial ScConv: this one was changed')
    weights = {name: state_dict[prefix + name] for name in NAMES}
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise ValueError(f'{prefix}{name} is a {type(weight).__name__}, not a tensor')

    def expect(name: str, *shapes: Sequence[int]) -> None:
        found = tuple(weights[name].shape)
        if found not in shapes:
            raise ValueError(f'{prefix}{name} has shape {found} instead of {" or ".join(map(str, shapes))}')

    for name in ('CRU.squeeze1.weight', 'CRU.squeeze2.weight', 'CRU.GWC.weight'):
        if weights[name].dim() != 4 or 0 in weights[name].shape:
            raise ValueError(f'{prefix}{name} has shape {tuple(weights[name].shape)}, which no convolution has')
    u, up = weights['CRU.squeeze1.weight'].shape[:2]
    low_squeezed, low = weights['CRU.squeeze2.weight'].shape[:2]
    channels = up + low
    per_group, height, width = weights['CRU.GWC.weight'].shape[1:]
    groups = max(u // per_group, 1)
    ratios = [r for r in range(1, min(up, low) + 1) if (up // r, low // r) == (u, low_squeezed)]
    if not ratios:
        raise ValueError(
            f'{prefix}CRU.squeeze1.weight and squeeze2.weight bring {up} and {low} channels to {u} and '
            f'{low_squeezed}, which is not one squeeze ratio'
        )
    if height != width or height % 2 == 0:
        raise ValueError(f'{prefix}CRU.GWC.weight has a {height}x{width} kernel: only square, odd ones can be run')
    expect('CRU.squeeze1.weight', (u, up, 1, 1))
    expect('CRU.squeeze2.weight', (low_squeezed, low, 1, 1))
    expect('SRU.gn.weight', (channels,), (channels, 1, 1))
    expect('SRU.gn.bias', tuple(weights['SRU.gn.weight'].shape))
    expect('CRU.GWC.weight', (channels, u // groups, height, width))
    expect('CRU.GWC.bias', (channels,))
    expect('CRU.PWC1.weight', (channels, u, 1, 1))
    expect('CRU.PWC2.weight', (channels - low_squeezed, low_squeezed, 1, 1))
    return FoundLayer(
        prefix, channels, height, up / channels, min(ratios, key=lambda r: (up % r + low % r, r)), groups,
        torch_gn=weights['SRU.gn.weight'].dim() == 1,
    )  # fmt: skip


def settings_table(layers: Sequence[FoundLayer], num_groups: int = NUM_GROUPS, form: str = 'legacy') -> str:
    """Return a table of the layers, and below it the ``conv_cfg`` settings that take their converted weights.

    Raises:
        ValueError: ``num_groups`` is impossible for one of the layers.
    """
    shown = [layer.prefix.removesuffix('.') or '(the whole)' for layer in layers]
    width = max(map(len, shown))
    lines = [f'{"layer":{width}}  channels  kernel  alpha  squeeze_ratio  gwc_groups  norm']
    names: dict[str, list[str]] = {}
    for name, layer in zip(shown, layers, strict=True):
        norm = 'GroupNorm' if layer.torch_gn else 'own, by unbiased std'
        lines.append(
            f'{name:{width}}  {layer.channels:8}  {layer.kernel_size:6}  {layer.alpha:5.4g}  {layer.squeeze_ratio:13}  '
            f'{layer.gwc_groups:10}  {norm}'
        )
        settings = ', '.join(f'{key}={value!r}' for key, value in layer.conv_cfg(num_groups, form).items())
        names.setdefault(f'dict({settings})', []).append(name)
    lines.append('')
    for settings, group in names.items():
        lines.append(f'conv_cfg={settings}' + (f'  # {", ".join(group)}' if len(names) > 1 else ''))
    lines.append(
        f'num_groups={num_groups} is as given: weights record neither group_num nor gate_treshold (threshold=0.5 here).'
    )
    if form == 'paper':
        lines.append(
            "The same weights, other numbers: SCConv's softmax is the paper's, and its GWC has no bias. Train on."
        )
    return '\n'.join(lines)
