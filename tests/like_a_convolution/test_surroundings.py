"""The process around a layer: default dtype and device, fake tensors, modes, threads; odd inputs."""

import threading

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from like_a_convolution.columns import (
    ARRANGEMENTS,
    CHANNELS,
    LAYERS,
    REASON,
    RIVALS,
    Column,
    answer,
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
    named,
    note,
    output,
    pairwise,
    plain,
    weights_of,
)
from mmscconv import CRU, SRU, SCConv
from mmscconv.ops.backend import BackendUnavailableError

SOME = (*LAYERS, 'inner_norm', 'stride 2', 'alpha 1', 'bias', 'kept')


# --- default dtype and device: memory was written beyond its end there ---


def big(column):
    """A column's layer and input with more channels and positions, so that a wrong size does harm."""
    settings = dict(
        inner_norm=column.layer in ('inner_norm', 'deploy inner_norm'), recompute=column.road == 'recompute'
    )
    if column.layer in ARRANGEMENTS:
        settings['arrangement'] = column.layer
    torch.default_generator.manual_seed(0)
    layer = SCConv(64, 64, 3, padding=1, **settings).train(column.training)
    truth = plain(layer)
    if column.deployed:
        layer.switch_to_deploy()
    return laid_out(layer, column), truth, laid_out(inputs(2, 64, (14, 14)), column)


# Kernels of every kind: over all modules in channels last, over one in the other format.
DEFAULTS = [
    *every((*ARRANGEMENTS, 'inner_norm'), road='default', channels_last=True, training=True),
    *every(('S+C', 'inner_norm'), road='default', channels_last=True, training=False),
    *every(('S+C', 'inner_norm'), road='default', channels_last=False, training=True),
    *every(('S+C',), road='recompute', training=True),
    *every(('deploy', 'deploy inner_norm'), road='default'),
]


@pytest.mark.parametrize('dtype', ['float64', 'bfloat16'])
def test_default_dtype(dtype):
    apart(_default_dtype, dtype)


def _default_dtype(dtype):
    subjects = []
    for column in DEFAULTS:
        layer, truth, x = big(column)
        names = [] if column.deployed else list(weights_of(layer))
        want = answer(first, truth, x.double().contiguous().requires_grad_(), names)
        subjects.append((column, layer, x, names, want))
    torch.set_default_dtype(getattr(torch, dtype))
    for column, layer, x, names, want in subjects:
        note(str(column))
        buffers = {name: b.clone() for name, b in layer.named_buffers()}
        for _ in range(5):
            for name, b in layer.named_buffers():
                b.copy_(buffers[name])
            got = answer(first, layer, x.clone(memory_format=torch.preserve_format).requires_grad_(), names)
            if column.deployed:
                want = {k: v for k, v in want.items() if 'buffer' not in k}
                got = {k: v for k, v in got.items() if k in want}
            assert_same(got, want, rtol=1e-3)
            assert got['y'].dtype == torch.float32


@pytest.mark.parametrize('dtype', ['float64', 'bfloat16'])
def test_layers_made_under_another_default_dtype(dtype):
    apart(_made_in_dtype, dtype)


def _made_in_dtype(dtype):
    torch.set_default_dtype(getattr(torch, dtype))
    for name in LAYERS:
        note(name)
        column = Column(name, channels_last=True, training=False)
        layer = made(name).eval()
        assert all(p.dtype == getattr(torch, dtype) for p in layer.parameters())
        truth = plain(layer)
        if column.deployed:
            layer.switch_to_deploy()
        x = laid_out(inputs().to(getattr(torch, dtype)), column)
        with torch.no_grad():
            y = layer(x)
        assert y.dtype == getattr(torch, dtype)
        if dtype == 'float64':
            torch.testing.assert_close(y, truth(x.contiguous()))
        else:
            assert (y.double() - truth(x.double().contiguous())).abs().mean() < 0.1


@pytest.mark.parametrize('how', ['set_default_device', 'context'])
def test_default_device_meta(how):
    """A CPU layer runs, trains and is deployed while new tensors go to the meta device by default."""
    apart(_default_device, how)


def _default_device(how):
    subjects = [(column, *big(column)) for column in DEFAULTS if not column.deployed]
    late = [
        (column, *big(Column('inner_norm', 'default', column.channels_last, False)))
        for column in DEFAULTS
        if column.deployed
    ]
    early = [(column, *big(column)) for column in DEFAULTS if column.deployed]
    wants = {}
    for column, layer, truth, x in subjects:
        wants[column] = answer(first, truth, x.double().contiguous().requires_grad_(), list(weights_of(layer)))
    for _, _, truth, x in (*late, *early):
        wants[id(truth)] = truth(x.double()).detach()
    context = torch.device('meta')
    if how == 'context':
        context.__enter__()
    else:
        torch.set_default_device('meta')
    for column, layer, _, x in subjects:
        note(str(column))
        y = layer(x.requires_grad_())
        assert y.device.type == 'cpu'
        y.backward(torch.ones_like(y))
        assert_same({'y': y}, {'y': wants[column]['y']})
    for column, layer, truth, x in early:
        note(f'{column} called')
        assert_same({'y': layer(x)}, {'y': wants[id(truth)]})
    for column, layer, truth, x in late:
        note(f'{column} deployed and called')
        layer.switch_to_deploy()
        assert_same({'y': layer(x)}, {'y': wants[id(truth)]})


# --- tensors without memory ---


def test_fake_tensors():
    apart(_fake)


def _fake():
    from torch._subclasses import FakeTensorMode

    asked = [c for c in pairwise((*LAYERS, 'inner_norm')) if c.road == 'default']
    # Weights with memory are what a kernel could read beside an input without.
    real = [c for c in asked if c.channels_last and c.layer not in ('Conv2d', 'Legacy', *RIVALS)]
    for column, fake_weights in [*((c, True) for c in asked), *((c, False) for c in real)]:
        note(f'{column}, fake weights: {fake_weights}')
        layer, _, x = build(column)
        want = build(column).layer(x)  # the layer itself is called for the first time with fake tensors
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = mode.from_tensor(x).requires_grad_()
            if fake_weights:
                for module in layer.modules():
                    for name, p in list(module._parameters.items()):
                        if p is not None:
                            module._parameters[name] = nn.Parameter(mode.from_tensor(p.detach()), p.requires_grad)
                    for name, b in list(module._buffers.items()):
                        if b is not None:
                            module._buffers[name] = mode.from_tensor(b)
            with torch.no_grad():
                assert type(layer(fake)) is type(fake), column
            y = layer(fake)
            y.sum().backward()
            assert type(y) is type(fake), column
            with torch.no_grad():
                y = layer(x)  # real input, which the mode takes for fake
                assert type(y) is type(fake), column
            assert y.shape == want.shape and y.dtype == want.dtype and y.stride() == want.stride(), column
            assert fake.grad.shape == fake.shape


def test_meta_device():
    apart(_meta)


def _meta():
    for column in pairwise(SOME):
        note(str(column))
        layer, _, x = build(column)
        want = build(column).layer(x)
        layer = layer.to('meta')
        x = laid_out(torch.empty_like(x, device='meta'), column).requires_grad_()
        if column.road == 'native':
            with pytest.raises(RuntimeError, match=f'{REASON}: it needs a CPU tensor, got one on meta'):
                layer(x)
            continue
        with torch.no_grad():
            assert layer(x).device.type == 'meta', column
        y = layer(x)
        y.sum().backward()
        assert y.device.type == 'meta' and y.shape == want.shape


@pytest.mark.parametrize('deployed', [False, True])
def test_subclass_of_tensor(deployed):
    """A tensor subclass that only counts goes through, and what it wraps is computed on."""
    apart(_tensor_subclass, deployed)


class Traced(torch.Tensor):
    """A subclass with nothing of its own but the functions that it has seen."""

    seen = None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if cls.seen is not None:
            cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


def _tensor_subclass(deployed):
    for column in pairwise(SOME):
        if column.deployed == deployed:
            note(str(column))
            layer, truth, x = build(column)
            if column.road == 'native':
                with pytest.raises(BackendUnavailableError, match='takes no tensor subclasses, got a Traced'):
                    layer(x.as_subclass(Traced))
                continue
            y = layer(x.as_subclass(Traced))
            assert_same({'y': y.as_subclass(torch.Tensor)}, {'y': truth(x.double())})


class SeeingOperators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class SeeingFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_function_and_dispatch_modes_see_convolutions():
    """A mode that counts or changes operators has the same sight of the layer as of plain PyTorch's."""

    class Doubling(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            return y * 2 if 'convolution' in str(func) and 'backward' not in str(func) else y

    for column in every(('S+C', 'CRU', 'inner_norm', 'C&S'), road='default', training=False):
        layer, truth, x = build(column)
        for mode in (Doubling, DoublingFunctions):
            with torch.no_grad(), mode():
                got, want = layer(x), truth(x.double())
            assert_same({'y': got}, {'y': want})


class DoublingFunctions(TorchFunctionMode):
    """Doubles what convolutions give, as modes that watch or quantize do something to it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return y * 2 if function in (torch.conv2d, nn.functional.conv2d) else y


@columns([c for c in pairwise(('Conv2d', *ARRANGEMENTS, 'inner_norm', 'deploy')) if c.road != 'plain'])
def test_function_modes_see_convolutions_in_training(column):
    """Backward runs outside of the mode and belongs to the forward pass that ran inside."""

    def question(layer, x, weights):
        with DoublingFunctions():
            y = layer(x)
        return named({'x': x, **weights}, torch.autograd.grad(loss(y), [x, *weights.values()], allow_unused=True))

    check(question, column, rtol=1e-3)


@dealt('kind', ['dispatch', 'function'], [c for c in every(('S+C', 'inner_norm'), training=True) if c.road != 'plain'])
def test_a_mode_around_backward_alone(column, kind):
    """It sees what backward runs: a forward pass that is recomputed takes the form that it took before."""
    mode = {'dispatch': SeeingOperators, 'function': SeeingFunctions}[kind]

    def question(layer, x, weights):
        y = loss(layer(x))
        with mode():
            return named({'x': x, **weights}, torch.autograd.grad(y, [x, *weights.values()], allow_unused=True))

    def the_other_way(layer, x, weights):
        with mode():
            y = loss(layer(x))
        return named({'x': x, **weights}, torch.autograd.grad(y, [x, *weights.values()], allow_unused=True))

    for each in (question, the_other_way):
        check(each, column, rtol=1e-3)


# --- modes ---


@columns(pairwise(SOME))
def test_inference_mode_and_no_grad(column):
    layer, truth, x = build(column)
    if column.training:
        layer.eval(), truth.eval()
    want = {'y': truth(x.double()).detach()}
    with torch.inference_mode():
        y = layer(x)
        assert_same({'y': y}, want)
    with torch.no_grad():
        assert_same({'y': layer(x)}, want)
        assert not layer(x).requires_grad
    # A cache filled in inference mode is not in the way of a gradient.
    x = x.requires_grad_()
    y = layer(x)
    assert_same({'y': y}, want)
    if not column.deployed:
        loss(y).backward()
    with torch.inference_mode():
        x = inputs()
        layer_made_inside = made('S+C').eval() if column.layer == 'S+C' else None
        if layer_made_inside:
            layer_made_inside(laid_out(x, column))


@dealt('cache', [True, False], pairwise(SOME))
def test_autocast(column, cache):
    """Under autocast the layer gives plain's numbers under autocast, in the same dtype."""
    layer, truth, x = build(column)
    truth = truth.float()
    names = [] if column.deployed else list(weights_of(layer))
    answers = []
    for module, t in ((truth, x.contiguous()), (layer, x)):
        with torch.autocast('cpu', torch.bfloat16, cache_enabled=cache):
            y = module(t.requires_grad_())
        wrt = {'x': t, **{n: dict(module.named_parameters())[n] for n in names}}
        grads = torch.autograd.grad(loss(y.float()), list(wrt.values()), allow_unused=True)
        answers.append((y, {n: g for n, g in zip(wrt, grads, strict=True) if g is not None}))
    (want, right), (got, grads) = answers
    assert got.dtype == want.dtype
    # A gate that rounding turns moves a value by half: compare on the whole.
    assert (got.float() - want.float()).abs().mean() < 0.02 * want.float().abs().mean() + 0.01
    assert grads.keys() == right.keys()
    floor = max([1.0, *(0.05 * g.norm() for g in right.values())])  # a bias in front of a BN has rounding for gradient
    for name, g in grads.items():
        assert g.dtype == right[name].dtype == torch.float32, name
        off = (g - right[name]).norm() / max(right[name].norm(), floor)
        assert off < 0.2, f'{name}: {off:.2g}'


@dealt('dtype', [torch.bfloat16, torch.float16, torch.float64], pairwise(SOME))
def test_other_dtypes(column, dtype):
    layer, truth, x = build(column)
    layer, x = layer.to(dtype), x.to(dtype)
    if column.road == 'native' and dtype == torch.float64:
        with pytest.raises(RuntimeError, match=f"{REASON}: .* not torch.float64; backend='plain' can"):
            layer(x)
        return
    y = layer(x)
    assert y.dtype == dtype
    want = truth(x.double())
    assert (y.double() - want).abs().mean() < (1e-5 if dtype == torch.float64 else 0.05 * want.abs().mean() + 0.01)


def test_deterministic_algorithms():
    """torch.use_deterministic_algorithms, which also fills new memory with NaN: nothing unwritten is read."""
    apart(_deterministic)


def _deterministic():
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for column in pairwise(SOME):
        note(str(column))
        check(first, column)


# --- threads ---


THREADED = [
    *every(('S+C', 'C+S'), road='default', training=False),
    *every(('S+C', 'inner_norm'), road='recompute'),
    *every(('inner_norm',), road='default', training=True),
    *every(('deploy', 'Conv2d', 'SPConv'), road='default', training=False, channels_last=True),
]


@columns(THREADED)
@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'forward and backward'])
def test_threads(column, backward):
    """Four threads use one layer at the same time; each gets its numbers, and no module is damaged."""
    layer, truth, _ = build(column)
    settings = {n: (m.momentum, m.training, m.eps) for n, m in layer.named_modules() if isinstance(m, nn.BatchNorm2d)}
    xs = [laid_out(inputs(seed=i), column) for i in range(4)]
    names = list(weights_of(truth)) if backward and not column.deployed else []

    def ask(module, x):
        if not backward:
            return output(module, x, {})
        return first(module, x.requires_grad_(), {n: dict(module.named_parameters())[n] for n in names})

    wants = [ask(truth, x.double().contiguous()) for x in xs]
    errors, barrier = [], threading.Barrier(len(xs))

    def work(x, want):
        try:
            barrier.wait(10)
            for _ in range(3):
                assert_same(ask(layer, x), want)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(xs, wants, strict=True)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors, errors[0]
    now = {n: (m.momentum, m.training, m.eps) for n, m in layer.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert now == settings
    for name, m in layer.named_modules():
        if isinstance(m, nn.BatchNorm2d) and column.training:
            # Lost updates are torch's own; more than one a call are not.
            assert m.num_batches_tracked <= 4 * 3, name
            assert m.running_mean.isfinite().all() and m.running_var.isfinite().all()


@columns(every(('S+C', 'inner_norm', 'stride 2'), road='recompute', training=True))
def test_an_exception_in_a_recomputed_layer_leaves_it_whole(column):
    """A backward pass that is interrupted half way changes nothing for good."""
    layer, _, x = build(column)
    settings = {n: (m.momentum, m.training) for n, m in layer.named_modules() if isinstance(m, nn.BatchNorm2d)}
    calls = []

    def interrupt(module, args):
        calls.append(module)
        if len(calls) > 1:
            raise KeyboardInterrupt

    handle = layer.cru.gwc.register_forward_pre_hook(interrupt)
    y = layer(x.requires_grad_())
    if len(calls) == 1:
        with pytest.raises(KeyboardInterrupt):
            y.sum().backward()
    handle.remove()
    assert {n: (m.momentum, m.training) for n, m in layer.named_modules() if isinstance(m, nn.BatchNorm2d)} == settings
    layer(x).sum().backward()


@columns(every(('inner_norm', 'output squeeze'), training=True))
def test_statistics_after_training_steps(column):
    """Running statistics and their counter move once a step, recomputed or not."""
    layer, truth, x = build(column)
    for module, t in ((layer, x.requires_grad_()), (truth, x.detach().double().contiguous().requires_grad_())):
        for i in range(3):
            module(t * (i + 1)).sum().backward()
    for (name, got), (_, want) in zip(layer.named_buffers(), truth.named_buffers(), strict=True):
        torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f'{n}: {m}')


# --- odd inputs ---


def odd_inputs():
    x = inputs(4, 2 * CHANNELS, (14, 12))
    base = inputs(2)
    return {
        'one image': base[:1],
        'every second channel': x[:2, ::2, :7, :6],
        'every second position': x[:2, :CHANNELS, ::2, ::2],
        'window of a larger map': x[:2, 5 : 5 + CHANNELS, 3:10, 4:10],
        'flipped batch': x[[1, 0], :CHANNELS, :7, :6],
        'transposed': base.transpose(2, 3).contiguous().transpose(2, 3),
        'width first': base.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        'expanded batch': base[:1].expand(2, -1, -1, -1),
        'expanded channels': base[:, :1].expand(-1, CHANNELS, -1, -1),
        'expanded positions': base[:, :, :1, :1].expand(-1, -1, 7, 6),
        'channels last window': x.to(memory_format=torch.channels_last)[1:3, :CHANNELS, 2:9, 1:7],
        'channels last channels': x.to(memory_format=torch.channels_last)[:2, 1 : 1 + CHANNELS, :7, :6],
        'off by one float': torch.cat([torch.zeros(1), base.flatten()])[1:].view(base.shape),
        'channels last off by one': torch.cat([torch.zeros(1), base.permute(0, 2, 3, 1).flatten()])[1:]
        .view(2, 7, 6, CHANNELS)
        .permute(0, 3, 1, 2),
        'one row': base[:, :, :1],
        'one position': base[:, :, :1, :1],
        'unbatched': base[0],
        'unbatched channels last': base[0].permute(1, 2, 0).contiguous().permute(2, 0, 1),
        'large values': base * 1e4,
        'zeros': torch.zeros_like(base),
    }


ODD = ('Conv2d', 'SRU', 'CRU', *ARRANGEMENTS, 'deploy', 'inner_norm', 'stride 2', 'Legacy', 'OctConv')


@columns(pairwise(ODD))
def test_odd_inputs(column):
    """Slices, expansions and permutations as input: the numbers, and the gradient's shape, of the contiguous input."""
    complaints = []
    layer, truth, _ = build(column)
    if column.training and column.layer in ('inner_norm', 'SPConv', 'GhostConv', 'SlimConv'):
        layer.eval(), truth.eval()
    for name, x in odd_inputs().items():
        if name == 'zeros':  # all on the threshold, where rounding decides
            layer(x)
            continue
        try:
            want = first(truth, x.double().contiguous().requires_grad_(), {})
            got = first(layer, x.detach().requires_grad_(), {})
            assert_same(got, want, rtol=1e-3)
        except AssertionError as error:
            complaints.append(f'{name}: {error}')
        except RuntimeError as error:
            complaints.append(f'{name}: {error}')
    assert not complaints, '\n'.join(complaints)


@columns(pairwise(SOME))
def test_empty_batch(column):
    layer, truth, x = build(column)
    layer.eval(), truth.eval()
    x = x[:0].clone().requires_grad_()
    y = layer(x)
    assert y.shape == truth(x.double()).shape
    y.sum().backward()
    assert x.grad.shape == x.shape


@dealt('value', [float('nan'), float('inf'), -float('inf')], every(SOME, training=False))
def test_not_finite_values_come_through(column, value):
    """One bad value in one image: that image's output is not finite where plain's is not, the other's is right."""
    layer, truth, x = build(column)
    with torch.no_grad():
        want = truth(x.double())
        x[0, 3, 2, 2] = value
        # In one dtype: convolutions of different algorithms spread infinity differently.
        got, bad = layer(x), laid_out(truth.float(), column)(x)
    assert torch.equal(bad[0].isfinite(), got[0].isfinite())
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-3, atol=1e-4)


@columns(every(('Conv2d', 'S+C', 'inner_norm', 'CRU', 'SRU'), training=True))
def test_not_finite_gradients_come_through(column):
    """A NaN in the gradient reaches the weights, where a loss scaler looks for it."""
    layer, _, x = build(column)
    y = layer(x.requires_grad_())
    seed = torch.ones_like(y)
    seed[0] = float('nan')
    y.backward(seed)
    assert x.grad.isnan().any()
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert any(g.isnan().any() for g in gradients)


@columns(pairwise(SOME))
def test_input_is_left_alone(column):
    layer, _, x = build(column)
    before, version = x.clone(), x._version
    y = layer(x.requires_grad_())
    loss(y).backward()
    assert torch.equal(x, before)
    assert x._version == version
    assert y.data_ptr() != x.data_ptr()


@columns(every(SOME, training=False))
def test_output_is_not_used_again(column):
    """The next call does not write where the last output lies; the output's memory is its own."""
    layer, _, x = build(column)
    with torch.no_grad():
        y = layer(x)
        before = y.clone()
        layer(x * 2)
        assert torch.equal(y, before)
        y.zero_()
        torch.testing.assert_close(layer(x), before)


REFUSALS = {
    'channels': (ValueError, r'expects \(N, 16, H, W\) or \(16, H, W\), got shape \(2, 14, 7, 6\)'),
    'axes': (ValueError, r'expects \(N, 16, H, W\) or \(16, H, W\), got shape \(7, 6\)'),
    'dtype': (ValueError, r'has weights of torch\.float32 and got an input of torch\.float64: convert one of them'),
    'integer': (ValueError, r'computes with floating-point numbers, got torch\.int64: convert with \.float\(\)'),
    'list': ((TypeError, AttributeError), 'list'),
}


@pytest.mark.parametrize(
    ('name', 'wrong'),
    [
        (name, wrong)
        for name in ('SRU', 'CRU', 'S+C', 'deploy', 'Legacy', *RIVALS)
        for wrong in ('channels', 'axes', 'dtype', 'integer', 'list')
        if (name, wrong) != ('SRU', 'dtype')  # no convolution in it: any floating dtype is right
    ],
)
def test_wrong_input_is_refused(name, wrong):
    """As nn.Conv2d, with an exception that says what is wrong: no number comes out, no process ends."""
    layer = build(Column(name, channels_last=True, training=not name.startswith('deploy'))).layer
    x = inputs()
    bad = {
        'channels': x[:, :-2],
        'axes': x[0, 0],
        'dtype': x.double(),
        'integer': x.long(),
        'list': x.tolist(),
    }[wrong]
    kind, message = REFUSALS[wrong]
    if wrong == 'dtype' and name in RIVALS and name != 'PFLayer':  # torch's own, of their convolutions
        kind, message = RuntimeError, r'expected scalar type|should be the same|same dtype'
    with pytest.raises(kind, match=message):
        layer(bad)


def test_classes_are_what_the_columns_say():
    assert isinstance(made('SRU'), SRU) and isinstance(made('CRU'), CRU)
