"""Hooks of every kind on the layer and on every module inside: called once a call, with plain's values, and obeyed."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.utils._pytree import tree_leaves

from like_a_convolution.columns import (
    LAYERS,
    RIVALS,
    Column,
    accept,
    assert_same,
    build,
    check,
    columns,
    every,
    first,
    loss,
    names_way_out,
    output,
    pairwise,
)
from mmscconv import CRU, SRU
from mmscconv.layers import AlignedAvgPool2d

COLUMNS = pairwise((*LAYERS, 'inner_norm', 'stride 2', 'alpha 0', 'alpha 1', 'bias', 'kept'))
# The same with kernels that reach over several modules, in both modes.
KERNELS = every(('S+C', 'C+S', 'C&S', 'CRU', 'inner_norm', 'stride 2', 'kept'), road='default', channels_last=True)
KINDS = ('forward_pre', 'forward', 'full_backward_pre', 'full_backward')
# Modules that have no counterpart in the form that is not deployed, and what both branches call.
UNCOUNTED = (AlignedAvgPool2d, nn.Identity)


@contextmanager
def recorded(layer, kind, everywhere):
    """Yield ``{module: [values of each call]}`` of hooks of ``kind``, on each module or global."""
    names = {id(m): name or 'the layer' for name, m in layer.named_modules() if not isinstance(m, UNCOUNTED)}
    calls: dict[str, list] = {}

    def hook(module, *values):
        if id(module) in names:
            tensors = [t.detach().clone() for t in tree_leaves(values) if t is not None]
            calls.setdefault(names[id(module)], []).append(tensors)

    if everywhere:
        handles = [getattr(global_hooks, f'register_module_{kind}_hook')(hook)]
    else:
        modules = [m for m in layer.modules() if id(m) in names]
        handles = [getattr(m, f'register_{kind}_hook')(hook) for m in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def calls_of(layer, x, kind, everywhere):
    backward = 'backward' in kind
    with torch.no_grad():
        mode = layer.training
        layer.eval()(x)  # a choice that is made once, before there are hooks, must not stay
        layer.train(mode)
    with recorded(layer, kind, everywhere) as calls:
        y = layer(x.detach().requires_grad_(backward))
        if backward:
            loss(y).backward()
        return dict(calls)


def must_be_called(truth):
    """Names of the modules that the paper's equations name: units, convolutions and inner norms."""
    inner = (nn.Conv2d, nn.BatchNorm2d, SRU, CRU)
    return {name or 'the layer' for name, m in truth.named_modules() if name == '' or isinstance(m, inner)}


# One value per channel has no variance: torch's BN refuses an image of SlimConv's in train mode.
UNBATCHED = [c for c in pairwise() if c.road in ('default', 'recompute') and not (c.training and c.layer == 'SlimConv')]


@pytest.mark.parametrize(
    ('column', 'unbatched'),
    [
        *(pytest.param(c, False, id=f'{c}-batch') for c in dict.fromkeys([*COLUMNS, *KERNELS])),
        *(pytest.param(c, True, id=f'{c}-unbatched') for c in UNBATCHED),
    ],
)
def test_hooks_are_called_once_with_plain_s_values(column, unbatched):
    layer, truth, x = build(column)
    if unbatched and column.channels_last and any(isinstance(m, nn.BatchNorm2d) for m in layer.modules()):
        # torch 2.11's BN itself gives other gradients there as soon as it has a full backward hook.
        layer, x = layer.to(memory_format=torch.contiguous_format), x.contiguous()
    x = x[0] if unbatched else x
    complaints = []
    for kind in KINDS:
        for everywhere in (False,) if unbatched else (False, True):
            try:
                compare_calls(column, layer, truth, x, kind, everywhere)
            except AssertionError as error:
                complaints.append(f'{"global" if everywhere else "own"} {kind} hooks: {error}')
    assert not complaints, '\n'.join(complaints)


def compare_calls(column, layer, truth, x, kind, everywhere):
    try:
        want = calls_of(truth, x.double().contiguous(), kind, everywhere)
    except RuntimeError as error:
        # A full backward hook in front of an in-place activation: torch refuses that for any modules.
        accept('backward' in kind and column.layer in RIVALS and 'modified inplace' in str(error), error)
        return
    missing = must_be_called(truth) - want.keys()
    assert not missing, f'not called on the plain road: {missing}'
    try:
        got = calls_of(layer, x, kind, everywhere)
    except RuntimeError as error:
        accept((column.road == 'native' or column.deployed) and names_way_out(error), error)
        return
    if column.deployed:
        # Its convolutions compute other things where norms are folded into them; there have to be calls all the same.
        convs = {n for n, m in layer.named_modules() if isinstance(m, nn.Conv2d) and not n.endswith('merged')}
        assert convs <= got.keys(), f'not called: {sorted(convs - got.keys())}'
        if column.layer != 'deploy':
            return
        want = {name: calls for name, calls in want.items() if name in convs}
        got = {name: got[name] for name in want}
    assert got.keys() == want.keys(), f'not called: {sorted(want.keys() - got.keys())}'
    for name, calls in want.items():
        counts = len(got[name]), len(calls)
        assert counts == (1, 1), f'{name}: called {counts[0]} times, by plain {counts[1]} times'
        mine, right = ({f'{name} {i}': t for i, t in enumerate(found[name][0])} for found in (got, want))
        assert_same(mine, right)


@columns(every(('SRU', 'S+C', 'C+S', 'C&S', 'S', 'Legacy'), training=True, channels_last=False))
def test_hooks_of_the_sru_s_norm(column):
    """The GN of Eq. 1 is a module like the others."""
    layer, _, x = build(column)
    got = calls_of(layer, x, 'forward', False)
    names = [name for name, m in layer.named_modules() if isinstance(m, nn.GroupNorm)]
    assert all(len(got.get(name, ())) == 1 for name in names), f'{names} not called once: {sorted(got)}'


@columns(every(('S+C', 'C+S', 'C&S', 'inner_norm', 'kept')))
def test_units_are_siblings(column):
    """Each unit is called with its own input: the CRU with the SRU's output, not with the layer's input."""
    layer, _, x = build(column)
    before = calls_of(layer, x, 'forward_pre', False)
    after = {name: calls[0][-1] for name, calls in calls_of(layer, x, 'forward', False).items()}
    given = {name: calls[0][0] for name, calls in before.items()}
    arrangement = column.layer if column.layer in ('C+S', 'C&S') else 'S+C'
    if arrangement == 'S+C':
        torch.testing.assert_close(given['cru'], after['sru'])
        torch.testing.assert_close(given['sru'], x)
    elif arrangement == 'C+S':
        torch.testing.assert_close(given['sru'], after['cru'])
        torch.testing.assert_close(given['cru'], x)
    else:
        torch.testing.assert_close(given['sru'], x)
        torch.testing.assert_close(given['cru'], x)


def places(name):
    """Names of the modules of the column's layer in which something may be put, the layer itself among them."""
    layer = build(Column(name, training=not name.startswith('deploy'))).layer
    names = [
        n for n, m in layer.named_modules() if not isinstance(m, (*UNCOUNTED, nn.GroupNorm, nn.ReLU, nn.Sequential))
    ]
    return [n for n in names if not n.endswith(('merged', 'attention', 'octave'))]


PLACES = [
    (column, place)
    for column in [
        *every(('S+C', 'inner_norm'), channels_last=True, training=True, road='default'),
        *every(('S+C',), training=False, road='default'),
        *every(('inner_norm',), training=True, road='recompute', channels_last=False),
        *every(('C+S', 'C&S', 'S', 'CRU', 'SRU', 'alpha 1'), training=True, road='default', channels_last=True),
        *every(('S+C',), training=True, road='native', channels_last=True),
        *every(('deploy',), road='default'),
        *every(('Conv2d', 'SPConv'), training=True, channels_last=False),
    ]
    for place in places(column.layer)
]


def at(place, register):
    """Return a change that calls ``register`` with the module at ``place``, where there is one."""
    return lambda layer: register(layer.get_submodule(place))


CHANGES = {
    'forward': lambda m: m.register_forward_hook(lambda m, args, y: y * 1.5),
    'forward_with_kwargs': lambda m: m.register_forward_hook(lambda m, a, k, y: y * 1.5, with_kwargs=True),
    'forward_pre': lambda m: m.register_forward_pre_hook(lambda m, args: (args[0] * 1.5, *args[1:])),
    'full_backward': lambda m: m.register_full_backward_hook(
        lambda m, gi, go: tuple(g if g is None else g * 1.5 for g in gi)
    ),
    'full_backward_pre': lambda m: m.register_full_backward_pre_hook(lambda m, go: (go[0] * 1.5,)),
}


@pytest.mark.parametrize(
    ('column', 'place', 'change'),
    [
        pytest.param(column, place, change, id=f'{column}-{place or "the layer"}-{change}')
        for i, (column, place) in enumerate(PLACES)
        for j, change in enumerate(CHANGES)
        if (i + j) % 3 == 0 or (column.layer == 'S+C' and column.channels_last and column.training)
    ],
)
def test_hooks_that_change_values(column, place, change):
    check(first, column, after=at(place, CHANGES[change]))


@columns([c for c in every(('S+C', 'inner_norm', 'C+S', 'deploy', 'SPConv')) if c.road != 'plain'])
def test_removed_hooks_leave_no_trace(column):
    def come_and_go(layer):
        for module in layer.modules():
            module.register_forward_hook(lambda m, a, y: y * 2).remove()
            module.register_full_backward_hook(lambda m, gi, go: None).remove()

    check(first, column, after=come_and_go)


@columns(every(('Conv2d', 'S+C', 'inner_norm', 'deploy'), road='default'))
def test_global_hooks_that_change_values(column):
    def question(layer, x, weights):
        handles = [
            global_hooks.register_module_forward_hook(lambda m, a, y: y * 2 if isinstance(m, nn.Conv2d) else None),
            global_hooks.register_module_forward_pre_hook(
                lambda m, a: (a[0] + 0.1, *a[1:]) if isinstance(m, nn.Conv2d) else None
            ),
        ]
        try:
            return first(layer, x, weights) if not column.deployed else output(layer, x, weights)
        finally:
            for handle in handles:
                handle.remove()

    check(question, column)


@columns([c for c in every(('Conv2d', 'S+C', 'CRU', 'deploy')) if c.road != 'plain'])
def test_a_hook_that_raises_ends_the_call(column):
    """As an early exit does (feature extraction that stops at a layer)."""

    class Stop(Exception):  # noqa: N818
        pass

    def stop(module, args):
        raise Stop

    layer, _, x = build(column)
    conv = [m for n, m in layer.named_modules() if isinstance(m, nn.Conv2d) and not n.endswith('merged')][-1]
    handle = conv.register_forward_pre_hook(stop)
    try:
        layer(x)
    except Stop:
        pass
    except RuntimeError as error:
        accept((column.road == 'native' or column.deployed) and names_way_out(error), error)
    else:
        pytest.fail('the hook was not called')
    handle.remove()
    layer(x)


@columns(every(('S+C', 'inner_norm'), road='recompute'))
def test_hooks_under_recompute(column):
    """A recomputed forward may call forward hooks once more, as torch's checkpoint does; backward hooks once."""
    layer, truth, x = build(column)
    with recorded(layer, 'forward', False) as forward, recorded(layer, 'full_backward', False) as backward:
        loss(layer(x.requires_grad_())).backward()
    for name in must_be_called(truth):
        assert 1 <= len(forward.get(name, ())) <= 2, name
        assert len(backward.get(name, ())) == 1, name
