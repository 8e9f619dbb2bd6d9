"""torch.func and forward-mode AD: the same numbers, or a refusal that names a way out."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from like_a_convolution.columns import (
    LAYERS,
    Column,
    apart,
    build,
    check,
    dealt,
    inputs,
    loss,
    made,
    note,
    pairwise,
)

# A BN in train mode writes its statistics in place, which vmap refuses for any module.
WITHOUT_BATCH_STATISTICS = [
    c
    for c in pairwise((*LAYERS, 'inner_norm', 'stride 2', 'bias', 'kept'))
    if not c.training or c.layer not in ('inner_norm', 'output squeeze', 'SPConv', 'GhostConv', 'SlimConv')
]


def detached(weights):
    return {name: w.detach() for name, w in weights.items()}


def of(layer, weights):
    """The layer as a function of weights and input."""
    return lambda weights, x: functional_call(layer, weights, (x,))


def func_grad(layer, x, weights):
    call = of(layer, weights)
    g, gx = grad(lambda w, x: loss(call(w, x)), argnums=(0, 1))(detached(weights), x.detach())
    return {'x': gx, **g}


def func_grad_of_grad(layer, x, weights):
    inner = lambda x: grad(lambda x: loss(layer(x)))(x).square().sum()  # noqa: E731
    return {'x': grad(inner)(x.detach())}


def func_vjp(layer, x, weights):
    y, back = vjp(layer, x.detach())
    return {'y': y, 'x': back(torch.ones_like(y))[0]}


def func_jvp(layer, x, weights):
    y, tangent = jvp(layer, (x.detach(),), (x.detach().cos(),))
    return {'y': y, 'tangent': tangent}


def func_jvp_of_weights(layer, x, weights):
    if not weights:
        return {}
    weights = detached(weights)
    tangents = {name: w.cos() for name, w in weights.items()}
    call = of(layer, weights)
    return {'tangent': jvp(lambda w: call(w, x.detach()), (weights,), (tangents,))[1]}


def dual(layer, x, weights):
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(x.detach(), x.detach().cos()))
        value, tangent = forward_ad.unpack_dual(y)
        assert tangent is not None, 'the tangent is lost in silence'
        return {'y': value, 'tangent': tangent}


def dual_without_grad(layer, x, weights):
    with torch.no_grad():
        return dual(layer, x, weights)


def dual_weights(layer, x, weights):
    """The tangent is a weight's, which stands in the module as a dual tensor."""
    if not weights:
        return {}
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(w.detach(), w.detach().cos()) for name, w in weights.items()}
        tangent = forward_ad.unpack_dual(functional_call(layer, duals, (x.detach(),))).tangent
        assert tangent is not None, 'the tangent is lost in silence'
        return {'tangent': tangent}


def forward_over_reverse(layer, x, weights):
    x = x.detach()
    return {'Hv': jvp(grad(lambda x: loss(layer(x))), (x,), (x.cos(),))[1]}


def reverse_over_forward(layer, x, weights):
    x = x.detach()
    return {'Hv': grad(lambda x: loss(jvp(layer, (x,), (x.cos(),))[1]))(x)}


def func_jacrev(layer, x, weights):
    return {'J': jacrev(lambda x: layer(x)[:, 3:5, 1, 1])(x.detach())}


def of_a_corner(layer, x):
    """The output as a function of the last four values of the input, and those."""
    values, channels_last = x.detach().flatten(), not x.is_contiguous()

    def function(corner):
        whole = torch.cat([values[:-4], corner]).view(x.shape)
        # vmap takes no memory format.
        return layer(whole.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if channels_last else whole)

    return function, values[-4:]


def func_jacfwd(layer, x, weights):
    function, corner = of_a_corner(layer, x)
    return {'J': jacfwd(function)(corner)}


def func_hessian(layer, x, weights):
    function, corner = of_a_corner(layer, x)
    return {'H': hessian(lambda corner: function(corner).square().sum())(corner)}


def func_vmap(layer, x, weights):
    x = x.detach()
    return {'y': vmap(layer)(torch.stack([x, x.cos(), x.sin()]))}


def func_vmap_inner_dimension(layer, x, weights):
    x = x.detach()
    return {'y': vmap(layer, in_dims=2, out_dims=1)(torch.stack([x, x.cos(), x.sin()], 2))}


def func_vmap_unbatched(layer, x, weights):
    return {'y': vmap(layer)(x.detach())}


def per_sample_gradients(layer, x, weights):
    if not weights:
        return {}
    call = of(layer, weights)
    one = grad(lambda w, x: loss(call(w, x.unsqueeze(0))))
    return vmap(one, in_dims=(None, 0))(detached(weights), x.detach())


QUESTIONS = [
    func_grad, func_grad_of_grad, func_vjp, func_jvp, func_jvp_of_weights, dual, dual_without_grad, dual_weights,
    forward_over_reverse, reverse_over_forward, func_jacrev, func_jacfwd, func_hessian, func_vmap,
    func_vmap_inner_dimension, func_vmap_unbatched, per_sample_gradients,
]  # fmt: skip
# In a process of their own: the input asks for no gradient, and torch's GroupNorm may end the process in channels last.
APART = (per_sample_gradients, func_jvp_of_weights, dual_weights)


@dealt('question', [q for q in QUESTIONS if q not in APART], WITHOUT_BATCH_STATISTICS)
def test_torch_func(question, column):
    _ask(question, column)


def test_torch_func_of_weights():
    apart(_in_every_column)


def _ask(question, column):
    # A deploy form is asked for its input's derivatives alone: nothing is left of these questions.
    nothing_asked = column.deployed and question in APART
    refuses = r"backend 'native' cannot run: .*backend='plain' can" if column.road == 'native' else None
    check(
        question, column, refuses=None if nothing_asked else refuses,
        torch_refuses='querying is_contiguous inside of vmap', rtol=1e-3,
    )  # fmt: skip


def _in_every_column():
    for column in WITHOUT_BATCH_STATISTICS:
        for question in APART:
            note(f'{question.__name__}, {column}')
            _ask(question, column)


@pytest.mark.parametrize('name', ['Conv2d', 'SRU', 'CRU', 'S+C', 'C+S', 'C&S', 'bias', 'Legacy', 'TiedConv', 'OctConv'])
def test_ensemble(name):
    """One call computes several layers' outputs, as torch.func's model ensembling does."""
    layers = [made(name) for _ in range(3)]
    for i, layer in enumerate(layers):
        with torch.no_grad():
            for p in layer.parameters():
                p.mul_(1 + i / 4)
    params, buffers = stack_module_state(layers)
    skeleton = made(name).to('meta')
    x = inputs()
    got = vmap(lambda p, b: functional_call(skeleton, (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(got, torch.stack([layer(x) for layer in layers]), rtol=1e-4, atol=1e-5)


def test_grad_of_one_output_in_a_whole_network():
    """functional_call reaches a layer inside a network, with weights that stand in no module."""
    column = Column('S+C', 'default', True)
    layer, truth, x = build(column)
    for module, t in ((layer, x), (truth, x.double())):
        net = nn.Sequential(module, nn.ReLU(), nn.Flatten(), nn.LazyLinear(1, dtype=t.dtype))
        torch.default_generator.manual_seed(0)
        net(t)
        net[3].weight.data.fill_(0.01)
        net[3].bias.data.zero_()
        weights = {n: p.detach() * 1.5 for n, p in net.named_parameters() if n.startswith('0.')}
        got = grad(lambda w, net=net, t=t: functional_call(net, w, (t,)).sum())(weights)
        if module is layer:
            first = got
    for name, g in got.items():
        torch.testing.assert_close(first[name].double(), g.double(), rtol=1e-3, atol=1e-5)


def test_every_column_is_asked():
    assert {c.layer for c in WITHOUT_BATCH_STATISTICS} >= set(LAYERS)
