"""fx, TorchScript, export, compile: traced once, right for other sizes and weights, or refused in words."""

import copy
import io
import warnings

import torch
from torch import fx, nn

from like_a_convolution.columns import (
    LAYERS,
    RIVALS,
    Column,
    accept,
    apart,
    assert_same,
    build,
    check,
    columns,
    dealt,
    first,
    inputs,
    laid_out,
    loss,
    names_way_out,
    note,
    pairwise,
    weights_of,
)

SOME = (*LAYERS, 'inner_norm', 'stride 2', 'alpha 0', 'alpha 1', 'bias', 'kept')
COLUMNS = [c for c in pairwise(SOME) if c.road != 'native']
FEW = [
    Column('Conv2d', 'default', False, True),
    Column('S+C', 'default', True, True),
    Column('inner_norm', 'recompute', True, True),
    Column('deploy', 'default', True, False),
]


def network(layer):
    """The layer between others, as a backbone has it."""
    torch.default_generator.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(16, 16, 1), layer, nn.BatchNorm2d(16), nn.ReLU())
    return net.to(next(layer.parameters()).dtype).train(layer.training)


def others(column):
    """Inputs of the size that was traced, of another size and of another batch."""
    return [laid_out(inputs(b, size=s, seed=4), column) for b, s in ((2, (7, 6)), (2, (9, 11)), (3, (5, 8)))]


@columns(COLUMNS)
def test_fx(column):
    """A traced network gives the network's numbers, derivatives included, for inputs of any size."""
    layer, truth, x = build(column)
    net, want = network(layer), network(truth)
    try:
        traced = fx.symbolic_trace(net)
    except Exception as error:
        accept(column.road != 'plain' and names_way_out(error), error)
        return
    for x in others(column):
        names = [] if column.deployed else [n for n, _ in net.named_parameters()]
        got, right = (
            first(m, t.requires_grad_(), {n: dict(m.named_parameters())[n] for n in names})
            for m, t in ((traced, x), (want, x.double().contiguous()))
        )
        assert_same(got, right, rtol=1e-3)


@columns([c for c in COLUMNS if c.road == 'default'])
def test_fx_of_the_layer_alone(column):
    layer, truth, x = build(column)
    try:
        traced = copy.deepcopy(fx.symbolic_trace(layer))
    except Exception as error:
        accept(names_way_out(error), error)
        return
    assert_same({'y': traced(x)}, {'y': truth(x.double())})


@columns([c for c in COLUMNS if c.road == 'default'])
def test_feature_extractor(column):
    """torchvision's create_feature_extractor gives the layer's output out of a network."""
    from torchvision.models.feature_extraction import create_feature_extractor

    layer, truth, x = build(column)
    net = network(layer)
    net.eval()
    try:
        extract = create_feature_extractor(net, {'1': 'inner', '3': 'last'})
    except Exception as error:
        accept(names_way_out(error), error)
        return
    got = extract(x)
    want = network(truth).eval()
    hidden = want[0](x.double())
    assert_same(got, {'inner': want[1](hidden), 'last': want(x.double())}, rtol=1e-3)


@columns([c for c in COLUMNS if not c.deployed and c.road == 'default'])
def test_efficient_conv_bn_eval(column):
    """mmengine's switch traces the network and joins convolutions and norms in eval mode, inner ones among them."""
    from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval

    layer, truth, x = build(column)
    net, want = network(layer), network(truth)
    net.eval(), want.eval()
    turn_on_efficient_conv_bn_eval(nn.ModuleDict(dict(backbone=net)), ['backbone'])
    names = [n for n, _ in net.named_parameters()]
    got, right = (
        first(m, t.requires_grad_(), {n: dict(m.named_parameters())[n] for n in names})
        for m, t in ((net, x), (want, x.double().contiguous()))
    )
    assert_same(got, right, rtol=1e-3)


@columns([c for c in COLUMNS if c.road != 'plain'])
def test_jit_trace(column):
    layer, truth, x = build(column)
    layer.eval(), truth.eval()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(layer, x, check_trace=column.road == 'recompute')
        loaded = traced
        if column.layer in ('S+C', 'Conv2d'):
            file = io.BytesIO()
            torch.jit.save(traced, file)
            file.seek(0)
            loaded = torch.jit.load(file)
    for x in others(column):
        want = {'y': truth(x.double())}
        for module in (traced, loaded):
            assert_same({'y': module(x)}, want)


@columns([c for c in COLUMNS if not c.channels_last and not c.training] + [Column('S+C', 'default', True, True)])
def test_jit_script(column):
    layer, truth, x = build(column)
    try:
        scripted = torch.jit.script(layer)
    except Exception as error:
        accept('torch.jit.trace' in str(error), error)
        return
    assert_same({'y': scripted(x)}, {'y': truth(x.double())})


@dealt(
    'strict',
    [False, True],
    [c for c in FEW if not c.training] + [Column(n, 'default', True, False) for n in RIVALS],
    parts=1,
    without=lambda strict, c: strict and c.layer in RIVALS,  # plain PyTorch, asked once
)
def test_export(column, strict):
    layer, truth, x = build(column)
    batch = torch.export.Dim('batch', min=1, max=64)
    # OctConv halves the height and rounds up, on which torch specializes.
    height = torch.export.Dim.STATIC if column.layer == 'OctConv' else torch.export.Dim('height', min=3, max=64)
    try:
        exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch, 2: height},), strict=strict).module()
    except Exception as error:
        accept(column.deployed and names_way_out(error), error)
        return
    larger = inputs(3, size=(7 if column.layer == 'OctConv' else 9, 6))
    for t in (x, laid_out(larger, column)):
        assert_same({'y': exported(t)}, {'y': truth(t.double())})


@columns(FEW)
def test_compile(column):
    """torch.compile with aot_eager: output and derivatives, then changed weights, without a recompilation for them."""
    torch._dynamo.reset()
    layer, truth, x = build(column)
    compiled = torch.compile(layer, backend='aot_eager')
    names = [] if column.deployed else [n for n, _ in layer.named_parameters()]
    for factor in (1, 1.5):
        if not column.deployed:
            for module in (layer, truth):
                with torch.no_grad():
                    for p in module.parameters():
                        p.mul_(factor)
        got, right = (
            first(call, t.clone().requires_grad_(), {n: dict(m.named_parameters())[n] for n in names})
            for call, m, t in ((compiled, layer, x), (truth, truth, x.double().contiguous()))
        )
        assert_same(got, right, rtol=1e-3)


def test_compile_in_one_graph():
    """No graph break inside the layer, in training."""
    torch._dynamo.reset()
    layer, truth, x = build(Column('S+C', 'default', True, True))
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True, dynamic=True)
    for x in others(Column('S+C', 'default', True, True))[:2]:
        assert_same({'y': compiled(x)}, {'y': truth(x.double())})


def test_compile_first_layer_in_channels_last():
    """The backward of torch 2.11's GroupNorm ends the process where a channels-last input gets no gradient."""
    apart(_compiled_first_layer)


def _compiled_first_layer():
    for name in ('SRU', 'S+C', 'C&S', 'inner_norm'):
        # With backend='eager' autograd asks for the gradients of the weights alone, although the input needs one, too.
        for backend, needs_one in (('eager', False), ('eager', True), ('aot_eager', False)):
            note(f'{name}, {backend}, input needs a gradient: {needs_one}')
            torch._dynamo.reset()
            layer, truth, x = build(Column(name, 'default', True, True))
            answers = []
            for call, module, t in ((torch.compile(layer, backend=backend), layer, x), (truth, truth, x.double())):
                weights = weights_of(module)
                y = call(t.contiguous() if module is truth else t.requires_grad_(needs_one))
                answers.append(dict(zip(weights, torch.autograd.grad(loss(y), list(weights.values())), strict=True)))
            assert_same(*answers, rtol=1e-3)


# inner_norm: the trace writes the norms' statistics once more.
@columns([c for c in FEW if c.layer not in ('deploy', 'inner_norm')])
def test_make_fx(column):
    """The graph of a training step, derivatives included."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def question(layer, x, weights):
        def step(x):
            return torch.autograd.grad(layer(x).square().sum(), x)[0]

        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            graph = make_fx(step)(x)
        return {'d x': graph(x)}

    check(question, column)


def test_fx_fuse_of_torch():
    """torch's own folding of norms in a traced network in eval mode."""
    from torch.fx.experimental.optimization import fuse

    for name in ('S+C', 'inner_norm', 'alpha 1', 'SPConv', 'TiedConv', 'GhostConv', 'SlimConv'):
        layer, truth, x = build(Column(name, training=False))
        net, want = network(layer).eval(), network(truth).eval()
        try:
            fused = fuse(net)
        except Exception as error:
            accept(names_way_out(error), error)
            continue
        assert_same({name: fused(x)}, {name: want(x.double())}, rtol=1e-3)
