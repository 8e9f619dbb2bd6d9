"""Derivatives of every order: each a row, most of them in every column."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from like_a_convolution.columns import (
    LAYERS,
    Column,
    accept,
    apart,
    build,
    check,
    columns,
    dealt,
    every,
    first,
    in_one_layout,
    inputs,
    loss,
    named,
    note,
    pairwise,
    plain,
    weights_of,
)

SOME = (*LAYERS, 'inner_norm', 'stride 2', 'alpha 1', 'bias', 'kept')


@columns(in_one_layout(every()))
def test_first(column):
    check(first, column)


@columns([c for c in pairwise() if c.layer not in ('Conv2d', 'deploy', 'deploy inner_norm')])
def test_first_of_some_frozen_weights(column):
    """Every other weight asks for no gradient, nor does the input."""

    def freeze(layer):
        for p in list(layer.parameters())[::2]:
            p.requires_grad_(False)

    # Channels last without a gradient for the input: see test_first_layer_in_channels_last.
    check(first, column, change=freeze, requires_grad=column.channels_last)


def both_losses(layer, x, weights):
    y = layer(x)
    wrt = {'x': x, **weights}
    once = torch.autograd.grad(loss(y), list(wrt.values()), retain_graph=True, allow_unused=True)
    twice = torch.autograd.grad(y.pow(3).sum(), list(wrt.values()), allow_unused=True)
    return {**named(wrt, once), **{f'second {n}': g for n, g in named(wrt, twice).items()}}


@columns([c for c in in_one_layout(every()) if c.road != 'plain'])
def test_two_backward_passes_over_one_graph(column):
    check(both_losses, column)


def penalty(layer, x, weights):
    """Gradient penalty, as WGAN-GP has it."""
    wrt = {'x': x, **weights}
    (g,) = torch.autograd.grad(loss(layer(x)), x, create_graph=True)
    return named(wrt, torch.autograd.grad((g.norm() - 1).square(), list(wrt.values()), allow_unused=True))


def norm_of_all_gradients(layer, x, weights):
    """Gradient of the norm of the gradient of the input and of every weight."""
    wrt = {'x': x, **weights}
    grads = torch.autograd.grad(loss(layer(x)), list(wrt.values()), create_graph=True, allow_unused=True)
    total = sum(g.square().sum() for g in grads if g is not None)
    return named(wrt, torch.autograd.grad(total, list(wrt.values()), allow_unused=True))


def norm_of_weights_gradients(layer, x, weights):
    """Gradient of the norm of the weights' gradients alone, where the input asks for none in the first pass."""
    if not weights:
        return {}
    grads = torch.autograd.grad(loss(layer(x)), list(weights.values()), create_graph=True, allow_unused=True)
    total = sum(g.square().sum() for g in grads if g is not None)
    wrt = {'x': x, **weights}
    return named(wrt, torch.autograd.grad(total, list(wrt.values()), allow_unused=True))


def backward_with_create_graph(layer, x, weights):
    """The same by ``backward(create_graph=True)``, through ``.grad``."""
    loss(layer(x)).backward(create_graph=True)
    total = x.grad.square().sum() + sum(w.grad.square().sum() for w in weights.values() if w.grad is not None)
    wrt = {'x': x, **weights}
    answer = named(wrt, torch.autograd.grad(total, list(wrt.values()), allow_unused=True))
    for t in wrt.values():
        t.grad = None
    return answer


@columns(in_one_layout(every()))
def test_second(column):
    check(norm_of_all_gradients, column, rtol=1e-3)


OTHERWISE = [penalty, norm_of_weights_gradients, backward_with_create_graph]


@dealt('question', OTHERWISE, pairwise(SOME))
@pytest.mark.filterwarnings('ignore:Using backward')
def test_second_otherwise(question, column):
    check(question, column, rtol=1e-3)


def third(layer, x, weights):
    wrt = {'x': x, **weights}
    v = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).cos().view(x.shape)
    (g,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    (g,) = torch.autograd.grad((g * v).sum(), x, create_graph=True)
    return named(wrt, torch.autograd.grad((g * v).sum(), list(wrt.values()), allow_unused=True))


@columns(pairwise(SOME))
def test_third(column):
    check(third, column, rtol=2e-3)


def jacobian(layer, x, weights, vectorize=False):
    """Jacobian of a small window of the output."""
    window = lambda x: layer(x)[:, 3:5, 2:4, 1]  # noqa: E731
    return {'J': torch.autograd.functional.jacobian(window, x, vectorize=vectorize)}


def vectorized_jacobian(layer, x, weights):
    return jacobian(layer, x, weights, vectorize=True)


def hvp(layer, x, weights):
    v = torch.ones_like(x)
    return {'Hv': torch.autograd.functional.hvp(lambda x: loss(layer(x)), x, v)[1]}


def double_backward_jvp(layer, x, weights):
    """Forward derivative by two backward passes."""
    return {'Jv': torch.autograd.functional.jvp(layer, x, torch.ones_like(x))[1]}


def batched_grads(layer, x, weights):
    y = layer(x)
    rows = torch.stack([torch.ones_like(y), y.detach()])
    wrt = {'x': x, **weights}
    grads = torch.autograd.grad(y, list(wrt.values()), rows, is_grads_batched=True, allow_unused=True)
    return {f'd {n}': g for (n, t), g in zip(wrt.items(), grads, strict=True) if g is not None}


@dealt('question', [jacobian, hvp, double_backward_jvp], pairwise(SOME))
def test_torch_autograd_functional(question, column):
    check(question, column, rtol=1e-3)


@dealt('question', [vectorized_jacobian, batched_grads], pairwise(SOME))
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_batched_backward(question, column):
    # nn.GroupNorm itself cannot be asked this in channels last.
    torchs_own = 'querying is_contiguous inside of vmap' if column.layer == 'Legacy' else '\0'
    check(question, column, torch_refuses=torchs_own, rtol=1e-3)


def gradients_of_odd_layouts(layer, x, weights):
    """Gradients that arrive expanded, transposed, strided, and of the other memory format."""
    y = layer(x)
    other = torch.contiguous_format if y.is_contiguous(memory_format=torch.channels_last) else torch.channels_last
    v = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    seeds = {
        'expanded': torch.ones((), dtype=y.dtype).expand(y.shape),
        'other format': v.contiguous(memory_format=other),
        'transposed': v.transpose(2, 3).contiguous().transpose(2, 3),
        'batch last': v.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }
    answer = {}
    for name, seed in seeds.items():
        wrt = {'x': x, **weights}
        grads = torch.autograd.grad(y, list(wrt.values()), seed, retain_graph=True, allow_unused=True)
        answer.update({f'{name} {n}': g for n, g in named(wrt, grads).items()})
    return answer


@columns(pairwise(SOME))
def test_gradients_of_odd_layouts(column):
    check(gradients_of_odd_layouts, column)


# One position of one image has no variance: torch's BN refuses SlimConv's in train mode.
@columns([c for c in pairwise() if c.channels_last and not (c.layer == 'SlimConv' and c.training)])
def test_gradient_of_one_image_in_the_other_format(column):
    """Strides of one channels-last image are ambiguous, on which torch 2.11's BN gives other gradients in silence."""

    def question(layer, x, weights):
        x = x.detach()[:1].requires_grad_()
        y = layer(x)
        seed = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape)
        return {'d x': torch.autograd.grad(y, x, seed)[0]}

    check(question, column, with_statistics=False)


def packed_tensors(layer, x, weights):
    """Saved tensors leave for numpy and come back, as ``save_on_cpu`` and compressed activations do."""
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().numpy().copy(), lambda a: torch.from_numpy(a.copy())
    ):
        return first(layer, x, weights)


def on_cpu(layer, x, weights):
    with torch.autograd.graph.save_on_cpu():
        return first(layer, x, weights)


def anomaly(layer, x, weights):
    with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter('ignore')
        return first(layer, x, weights)


def tensor_hooks(layer, x, weights):
    """Hooks on input, output and weights that change gradients, and count their calls."""
    calls = []

    def hook(name, t):
        t.register_hook(lambda g: calls.append(name) or g * 2)

    inner = x * 1
    hook('x', inner)
    y = layer(inner)
    hook('y', y)
    y.retain_grad()
    inner.retain_grad()
    for name, w in weights.items():
        hook(name, w)
    loss(y).backward()
    assert sorted(c for c in calls if c in ('x', 'y')) == ['x', 'y'], calls
    assert all(calls.count(name) == 1 for name, w in weights.items() if w.grad is not None), calls
    answer = {'y': y.grad, 'inner': inner.grad, 'x': x.grad}
    return {**answer, **{n: w.grad for n, w in weights.items() if w.grad is not None}}


def optimizer_in_backward(layer, x, weights):
    """Each weight steps as soon as its gradient is there, which frees the gradient."""

    def step(w):
        with torch.no_grad():
            w.sub_(0.01 * w.grad)
        w.grad = None

    handles = [w.register_post_accumulate_grad_hook(step) for w in weights.values()]
    loss(layer(x)).backward()
    for handle in handles:
        handle.remove()
    return {'d x': x.grad, **{n: w.detach().clone() for n, w in weights.items()}}


def multi_grad_hook(layer, x, weights):
    wrt = {'x': x, **weights}
    seen = []
    used = dict(wrt)
    torch.autograd.graph.register_multi_grad_hook(list(used.values()), lambda grads: seen.append(grads), mode='all')
    loss(layer(x)).backward()
    (grads,) = seen
    return named(used, grads)


def without_saved_tensors_hooks(layer, x, weights):
    with torch.autograd.graph.disable_saved_tensors_hooks('no hooks here'):
        return first(layer, x, weights)


ROUNDABOUT = [
    packed_tensors,
    on_cpu,
    anomaly,
    tensor_hooks,
    optimizer_in_backward,
    multi_grad_hook,
    without_saved_tensors_hooks,
]


@dealt('question', ROUNDABOUT, pairwise(SOME))
def test_first_in_a_roundabout_way(question, column):
    check(question, column)


def checkpointed(layer, x, weights, **options):
    call = functools.partial(checkpoint, layer, **options)
    return first(call, x, weights)


def checkpointed_twice(layer, x, weights):
    """A graph inside a checkpoint is walked twice."""
    return both_losses(functools.partial(checkpoint, layer, use_reentrant=False), x, weights)


@dealt('reentrant', [False, True], pairwise(SOME))
def test_gradient_checkpointing(column, reentrant):
    def question(layer, x, weights):
        loss(checkpoint(layer, x, use_reentrant=reentrant)).backward()
        return {'x': x.grad, **{n: w.grad for n, w in weights.items() if w.grad is not None}}

    # It is torch's choice which norms see the second forward: it stops when it has all that backward needs.
    check(question, column, with_statistics=False)


@columns(pairwise(SOME))
def test_gradient_checkpointing_and_two_backward_passes(column):
    check(checkpointed_twice, column, with_statistics=False)


def changed_output(layer, x, weights):
    """An in-place activation behind the layer, and in-place arithmetic."""
    y = nn.functional.relu(layer(x).mul_(2).add_(0.1), inplace=True)
    wrt = {'x': x, **weights}
    return {'y': y.detach(), **named(wrt, torch.autograd.grad(loss(y), list(wrt.values()), allow_unused=True))}


@columns([c for c in pairwise() if c.layer != 'kept'])
def test_output_changed_in_place(column):
    check(changed_output, column)


def right_or_refused_by_torch(column, touch):
    """A tensor that backward needs changes between forward and backward: torch's own error, or the right numbers."""
    layer, truth, x = build(column)
    names = [] if column.deployed else list(weights_of(layer))
    wants = first(
        truth, x.double().contiguous().requires_grad_(), {n: dict(truth.named_parameters())[n] for n in names}
    )
    inner = x.clone(memory_format=torch.preserve_format).requires_grad_()
    x = inner * 1
    y = layer(x)
    value = loss(y) if touch != 'output' else (y * loss_seed(y)).sum()
    with torch.no_grad():
        if touch == 'input':
            x.mul_(3)
        elif touch == 'weights':
            for p in layer.parameters():
                p.mul_(3)
        else:
            y.mul_(3)
    weights = {n: dict(layer.named_parameters())[n] for n in names}
    wrt = {'x': inner, **weights}
    try:
        got = named(wrt, torch.autograd.grad(value, list(wrt.values()), allow_unused=True))
    except RuntimeError as error:
        accept('modified by an inplace' in str(error) or 'modified inplace' in str(error), error)
        return
    if touch == 'output':
        inner64 = inputs().double().requires_grad_()
        y = truth(inner64)
        wrt = {'x': inner64, **{n: dict(truth.named_parameters())[n] for n in names}}
        wants = named(wrt, torch.autograd.grad((y * loss_seed(y)).sum(), list(wrt.values()), allow_unused=True))
    for name, g in got.items():
        torch.testing.assert_close(g.double(), wants[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f'{n}: {m}')


def loss_seed(y):
    return torch.linspace(-2, 2, y.numel(), dtype=y.dtype).view(y.shape)


@dealt('touch', ['input', 'weights', 'output'], pairwise(SOME))
def test_changed_in_place_before_backward(column, touch):
    # Norms in train mode would change the truth's statistics by a second call, which nothing here reads.
    right_or_refused_by_torch(column, touch)


def test_first_layer_in_channels_last():
    """Images or frozen stages' maps ask for no gradient: torch 2.11's GroupNorm ends the process."""
    apart(_first_layer)


def _first_layer():
    for column in every(channels_last=True, training=True):
        note(str(column))
        check(first, column, requires_grad=False)


@pytest.mark.parametrize('name', [n for n in (*LAYERS, 'inner_norm', 'stride 2', 'bias') if not n.startswith('deploy')])
def test_plain_is_what_finite_differences_say(name):
    """The truth of this table is checked here: plain, first and second order, by finite differences in float64."""
    column = Column(name, training=name not in ('inner_norm', 'output squeeze'))
    layer = plain(build(column).layer)
    x = inputs(1, size=(3, 2)).double()
    if name in ('alpha 1', 'TiedConv', 'stride 2', 'SlimConv', 'GhostConv', 'SPConv'):
        layer.eval()
    names = list(weights_of(layer))

    def function(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    arguments = (x.requires_grad_(), *(w.detach().clone().requires_grad_() for w in weights_of(layer).values()))
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True, check_forward_ad=True, check_backward_ad=False)
