"""Weights that change between two calls, by every way there is; and copies of layers. No stale number."""

import copy
import functools
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, prune, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from like_a_convolution.columns import (
    LAYERS,
    Column,
    accept,
    apart,
    assert_same,
    build,
    check,
    columns,
    dealt,
    every,
    first,
    inputs,
    laid_out,
    loss,
    made,
    names_way_out,
    note,
    pairwise,
    plain,
    weights_of,
)

SOME = (*(n for n in LAYERS if n not in ('GhostConv', 'SlimConv', 'OctConv')), 'inner_norm', 'stride 2', 'bias', 'kept')
# A way to change weights has nothing to do with a rival's equations.
KERNELS = ('S+C', 'inner_norm', 'deploy', 'deploy inner_norm')
COLUMNS = [*dict.fromkeys([*pairwise(SOME), *every(KERNELS, road='default')])]


def factors(layer):
    """Another factor for every weight, by its name, that both the layer and its truth know.

    What the deploy form keeps merged of two squeezes is a copy of theirs; who changes weights by name leaves it alone.
    """
    names = [name for name, _ in layer.named_parameters()]
    return {name: 1.0 if '.merged.' in name else 1.2 + 0.1 * (sum(map(ord, name)) % 5) for name in names}


def weights(layer):
    return [(p, factors(layer)[name]) for name, p in layer.named_parameters()]


def copied(layer):
    with torch.no_grad():
        for p, f in weights(layer):
            p.copy_(p * f)


def multiplied(layer):
    with torch.no_grad():
        for p, f in weights(layer):
            p.mul_(f)


def data_multiplied(layer):
    """Leaves the version counter as it is."""
    for p, f in weights(layer):
        p.data.mul_(f)


def data_replaced(layer):
    for p, f in weights(layer):
        p.data = p.data * f


def through_numpy(layer):
    for p, f in weights(layer):
        array = p.detach().numpy()
        array *= f


def loaded(layer):
    f = factors(layer)
    layer.load_state_dict({name: t * f[name] if name in f else t for name, t in layer.state_dict().items()})


def assigned(layer):
    f = factors(layer)
    state = {name: t * f[name] if name in f else t for name, t in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def new_parameters(layer):
    f = factors(layer)
    for name, p in list(layer.named_parameters()):
        parent, _, last = name.rpartition('.')
        setattr(layer.get_submodule(parent), last, nn.Parameter(p.detach() * f[name]))


def swapped(layer):
    for p, f in weights(layer):
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * f))


def by_vector(layer):
    f = factors(layer)
    flat = torch.cat([(p.detach() * f[name]).reshape(-1) for name, p in layer.named_parameters()])
    assert len(flat) == len(parameters_to_vector(layer.parameters()))
    vector_to_parameters(flat, layer.parameters())


def foreach(layer):
    ps, fs = zip(*weights(layer), strict=True)
    with torch.no_grad():
        torch._foreach_mul_(list(ps), list(fs))


def one_at_a_time(layer):
    """One value of each weight alone, as a finite difference does."""
    with torch.no_grad():
        for p, _ in weights(layer):
            p[(0,) * p.dim()].add_(0.5)


WAYS = [
    copied, multiplied, data_multiplied, data_replaced, through_numpy, loaded, assigned, new_parameters, swapped,
    by_vector, foreach, one_at_a_time,
]  # fmt: skip


def same_after_a_change(column, way):
    """Ask the changed layer; a deployed one is compared with a copy that is made now and calls its modules."""
    if not column.deployed:
        check(first, column, after=way)
        return
    layer, _, x = build(column)
    with torch.no_grad():  # as the kernel of the deploy form wants it
        old = layer(x)
    before = {n: p.detach().clone() for n, p in layer.named_parameters()}
    try:
        way(layer)
        with torch.no_grad():
            got = layer(x)
    except Exception as error:
        accept('deploy' in str(error) or names_way_out(error), error)
        return
    now = dict(layer.named_parameters())
    if not now or all(torch.equal(before[n], now[n]) for n in before):
        torch.testing.assert_close(got, old)
        return
    assert (got - old).abs().max() > 1e-3, 'the output of the old weights'
    assert_same({'y': got}, {'y': plain(layer)(x.double())})


# torch's parameters_to_vector takes contiguous weights alone, whatever the module.
@dealt('way', WAYS, COLUMNS, without=lambda way, c: way is by_vector and c.channels_last)
def test_changed_weights(column, way):
    same_after_a_change(column, way)


@columns(every(('deploy', 'deploy inner_norm'), road='default'))
@pytest.mark.parametrize('way', [copied, data_multiplied, data_replaced, assigned], ids=lambda w: w.__name__)
def test_one_changed_weight_of_the_deploy_form(column, way):
    """Each weight alone: some are packed together with others, some stand there twice."""
    layer, _, x = build(column)
    names = [n for n, _ in layer.named_parameters() if '.merged.' not in n]
    for name in names:
        layer, _, x = build(column)
        with torch.no_grad():
            old = layer(x)
        parent, _, last = name.rpartition('.')
        module = layer.get_submodule(parent)
        p = module.get_parameter(last)
        try:
            with torch.no_grad():
                if way is copied:
                    p.copy_(p * 3)
                elif way is data_multiplied:
                    p.data.mul_(3)
                elif way is data_replaced:
                    p.data = p.data * 3
                else:
                    layer.load_state_dict({**layer.state_dict(), name: p * 3}, assign=True)
                got = layer(x)
        except Exception as error:
            accept('deploy' in str(error) or names_way_out(error), error)
            continue
        assert (got - old).abs().max() > 1e-4, f'{name}: the output of the old weight'


@columns(every(('S+C', 'inner_norm', 'SRU', 'CRU', 'Conv2d', 'deploy inner_norm'), training=False, road='default'))
def test_changed_statistics(column):
    """Running statistics of inner norms, and eps, as calibration and precise BN change them."""

    def way(layer):
        for m in layer.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.add_(0.3)
                m.running_var = m.running_var * 2
                m.eps = 0.01

    if not column.deployed:
        check(first, column, after=way)
        return
    layer, truth, x = build(column)
    assert not [name for name in layer.state_dict() if 'running' in name]  # they are folded
    way(layer)
    assert_same({'y': layer(x)}, {'y': truth(x.double())})


@columns(COLUMNS)
def test_functional_call(column):
    """torch.func.functional_call with other weights, then the module's own again."""

    def question(layer, x, weights):
        others = {n: w.detach() * f for n, w in layer.named_parameters() if (f := factors(layer)[n])}
        y = torch.func.functional_call(layer, others, (x,))
        if column.deployed:
            return {'own': layer(x)}
        g = torch.autograd.grad(loss(y), x)[0]
        return {'y': y, 'd x': g, 'own': layer(x)}

    check(question, column)


@columns(every(('deploy',)))
def test_functional_call_of_the_deploy_form(column):
    layer, _, x = build(column)
    truth = plain(made('deploy')).eval()
    f = factors(layer)
    with torch.no_grad():
        for n, p in truth.named_parameters():
            p.mul_(f[n])
        try:
            got = torch.func.functional_call(layer, {n: p * f[n] for n, p in layer.named_parameters()}, (x,))
        except Exception as error:
            accept('deploy' in str(error) or names_way_out(error), error)
            return
        assert_same({'y': got}, {'y': truth(x.double())})


def keeping_layout(prune_it):
    """torch's pruning takes contiguous weights alone, whatever the module: prune so, and go back to the layout."""

    @functools.wraps(prune_it)
    def way(layer):
        channels_last = any(
            p.dim() == 4 and not p.is_contiguous() and p.is_contiguous(memory_format=torch.channels_last)
            for p in layer.parameters()
        )
        prune_it(layer.to(memory_format=torch.contiguous_format))
        if channels_last:
            layer.to(memory_format=torch.channels_last)

    return way


@keeping_layout
def pruned(layer):
    for module in list(layer.modules()):
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, 'weight', amount=0.3)


@keeping_layout
def pruned_by_channel(layer):
    for module in list(layer.modules()):
        if isinstance(module, nn.Conv2d):
            prune.ln_structured(module, 'weight', amount=0.25, n=2, dim=0)


@keeping_layout
def pruned_globally(layer):
    convs = [(m, 'weight') for m in layer.modules() if isinstance(m, nn.Conv2d)]
    if convs:
        prune.global_unstructured(convs, pruning_method=prune.L1Unstructured, amount=0.3)


def pruned_and_removed(layer):
    pruned_globally(layer)
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            prune.remove(module, 'weight')


def pruned_then_stepped(layer):
    """The mask is applied in a hook before each forward: changed originals must show."""
    pruned(layer)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(1.5)


PRUNING = [pruned, pruned_by_channel, pruned_globally, pruned_and_removed, pruned_then_stepped]


def a_norm_magnifies_rounding(way, column):
    """A norm in train mode over a channel of zeros multiplies rounding by 300."""
    return way is pruned_by_channel and column.training and column.layer in ('inner_norm', 'SPConv')


@dealt('way', PRUNING, COLUMNS, without=a_norm_magnifies_rounding)
def test_pruning(column, way):
    if column.deployed:
        same_as_a_pruned_copy(column, way)
    else:
        check(first, column, after=way)


def same_as_a_pruned_copy(column, way):
    """The deploy form computes with the pruned weights, as a copy does that calls its modules."""
    layer, _, x = build(column)
    with torch.no_grad():
        old = layer(x)
        try:
            way(layer)
            got = layer(x)
        except Exception as error:
            accept('deploy' in str(error) or names_way_out(error), error)
            return
        assert (got - old).abs().max() > 1e-4, 'the output of the old weights'
        assert_same({'y': got}, {'y': plain(layer)(x.double())})


@columns([c for c in COLUMNS if c.road != 'native'])
def test_averaged_models(column):
    """SWA and EMA of weights, then their outputs."""
    layer, truth, x = build(column)
    averages = []
    for module in (layer, truth):
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        for i in range(3):
            if not column.deployed:
                with torch.no_grad():
                    for p, f in weights(module):
                        p.mul_(f + 0.1 * i)
            average.update_parameters(module)
        averages.append(average.eval())
    got, want = (a(t) for a, t in zip(averages, (x, x.double()), strict=True))
    assert_same({'y': got}, {'y': want})


@dealt(
    'options',
    [dict(), dict(foreach=True), dict(fused=True)],
    [c for c in COLUMNS if not c.deployed and c.road != 'native'],
)
def test_training_steps(column, options):
    """Three steps of SGD end in the weights in which plain ends."""

    def train(layer, x, _):
        optimizer = torch.optim.SGD(
            [w for w in layer.parameters() if w.requires_grad], lr=1e-2, momentum=0.9, **options
        )
        for i in range(3):
            optimizer.zero_grad()
            layer(x * (1 + i)).square().mean().backward()
            optimizer.step()
        return {n: w.detach() for n, w in layer.named_parameters()} | {'y': layer(x)}

    check(train, column, rtol=1e-3)


# --- copies ---


def deepcopied(layer):
    return copy.deepcopy(layer)


def pickled(layer):
    return pickle.loads(pickle.dumps(layer))


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def twice_there_and_back(layer):
    return layer.double().float()


@dealt('way', [deepcopied, pickled, saved, twice_there_and_back], COLUMNS)
def test_copies(column, way):
    """A copy of a used layer gives the same numbers, and neither sees the other's weights from then on."""
    layer, truth, x = build(column)
    names = [] if column.deployed else list(weights_of(layer))
    ask = lambda m, x: first(m, x.clone().requires_grad_(), {n: dict(m.named_parameters())[n] for n in names})  # noqa: E731
    ask(layer, x)
    keys = list(layer.state_dict())
    other = way(layer)
    assert list(other.state_dict()) == keys == list(laid_out(layer, column).state_dict())
    assert repr(other) == repr(layer)
    assert other.training == layer.training
    assert_same(ask(other, x), ask(truth, x.double().contiguous()))
    if other is not layer:
        data_multiplied(other)
        assert_same(ask(layer, x), ask(truth, x.double().contiguous()))
        if not column.deployed:
            data_multiplied(truth)
            assert_same(ask(other, x), ask(truth, x.double().contiguous()))


# Norms in train mode, whose statistics the copies share, are left out.
NORMED = ('inner_norm', 'SPConv', 'GhostConv', 'SlimConv')


@columns([c for c in COLUMNS if c.road == 'default' and not (c.training and c.layer in NORMED)])
def test_shallow_copy(column):
    """copy.copy shares weights: a change of one layer's weights shows in the other."""
    layer, truth, x = build(column)
    layer(x)
    other = copy.copy(layer)
    assert_same({'y': other(x)}, {'y': truth(x.double())})
    if not column.deployed:
        multiplied(other)
        multiplied(truth)
        assert_same({'y': layer(x)}, {'y': truth(x.double())})


@columns(every(('S+C', 'inner_norm', 'deploy', 'SPConv'), channels_last=True))
def test_calls_leave_no_tensors_behind(column):
    """Neither state nor attributes grow by a call: no cache that a checkpoint or a copy would carry, no graph kept."""
    layer, _, x = build(column)
    sizes = {len(pickle.dumps(layer))}
    for _ in range(2):
        loss(layer(x.requires_grad_())).backward()
        layer.zero_grad()
        sizes.add(len(pickle.dumps(layer)))
    assert len(sizes) == 1


def test_pickled_layers_work_in_another_process():
    """Also one that was deployed and used: nothing of this process may be in it."""
    payloads = {}
    for column in every(('S+C', 'inner_norm', 'deploy', 'deploy inner_norm'), training=False):
        layer, truth, x = build(column)
        with torch.no_grad():
            layer(x)
            payloads[str(column)] = (pickle.dumps(layer), truth(x.double()).float().numpy(), column.channels_last)
    apart(_unpickled, payloads)


def _unpickled(payloads):
    for name, (payload, want, channels_last) in payloads.items():
        note(name)
        x = laid_out(inputs(), Column('S+C', channels_last=channels_last))
        with torch.no_grad():
            torch.testing.assert_close(pickle.loads(payload)(x), torch.from_numpy(want), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', [n for n in LAYERS if n not in ('deploy', 'deploy inner_norm')])
def test_state_dict_round_trip_by_weights_only(name):
    layer, other = made(name).eval(), made(name).eval()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = inputs()
    assert torch.equal(layer(x), other(x))
