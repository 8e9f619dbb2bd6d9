"""Columns of the table: layers, roads (backends), memory formats and modes; and how an answer is judged.

A row is a question: a function ``(layer, x, weights) -> {name: tensor}``. Its answer by a column's float32 layer is
compared with the answer of the same layer with plain operations in float64, whose input and weights are contiguous.
A row says where a refusal is due, and part of its message; one that is not due fails, and so does one that is missing.
"""

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn

from helpers import forks
from helpers.plain import without_kernels
from mmscconv import CRU, SRU, LegacySCConv, SCConv
from mmscconv.layers.rivals import GhostConv, OctConv, PFLayer, SlimConv, SPConv, TiedConv, VersatileConv
from mmscconv.ops import compiled

CHANNELS, SIZE = 16, (7, 6)
ARRANGEMENTS = ('S+C', 'C+S', 'C&S', 'S', 'C')


class BiasedPFLayer(PFLayer):
    """With its one parameter, for questions about parameters."""

    __signature__ = inspect.signature(PFLayer)

    def __init__(self, *args, bias=True, **settings):
        super().__init__(*args, bias=bias, **settings)


RIVALS = {
    'SPConv': SPConv,
    'TiedConv': TiedConv,
    'GhostConv': GhostConv,
    'SlimConv': SlimConv,
    'OctConv': OctConv,
    'PFLayer': BiasedPFLayer,
    'VersatileConv': VersatileConv,
}
# Settings of S+C that take other code.
SETTINGS = {
    'inner_norm': dict(inner_norm=True),
    'stride 2': dict(stride=2),
    'alpha 0': dict(alpha=0),
    'alpha 1': dict(alpha=1),
    'alpha 3/4': dict(alpha=0.75),
    '4 groups': dict(gwc_groups=4),
    'bias': dict(bias=True),
    'kept': {},
    'hard gate': dict(gate='hard'),
    'output squeeze': dict(low_squeeze='output', inner_norm=True),
    'dilation 2': dict(dilation=2, padding=2),
    'odd kernel': dict(kernel_size=(3, 1), padding='same'),
}
LAYERS = ('Conv2d', 'SRU', 'CRU', *ARRANGEMENTS, 'deploy', 'deploy inner_norm', 'Legacy', *RIVALS)
WITHOUT_KERNELS = ('Conv2d', 'Legacy', *RIVALS)
# Part of the message of a refusal that says what to do instead.
WAYS_OUT = (
    "backend='plain'",
    'MMSCCONV_BACKEND=plain',
    'switch_to_deploy',
    'torch.jit.trace',
    'torch.export',
    'trace the model',
)
# Who names a backend gets the reason why that one cannot run.
REASON = "backend 'native' cannot run"


@dataclass(frozen=True)
class Column:
    """A layer, the road its numbers take, the memory format of input and weights, and the mode."""

    layer: str
    road: str = 'default'
    channels_last: bool = False
    training: bool = True

    @property
    def deployed(self) -> bool:
        return self.layer.startswith('deploy')

    def __str__(self) -> str:
        layout, mode = ('nhwc' if self.channels_last else 'nchw'), ('train' if self.training else 'eval')
        return f'{self.layer}-{self.road}-{layout}-{mode}'


def roads(layer: str) -> tuple[str, ...]:
    if layer in WITHOUT_KERNELS:
        return ('default',)
    # Where plain is asked about plain, one layer of each kind is enough.
    plain = ('plain',) if layer in ('S+C', 'SRU', 'deploy') else ()
    if layer in ('SRU', 'CRU') or layer.startswith('deploy'):
        return 'default', *plain, 'native'
    if layer in SETTINGS:
        return 'default', 'recompute'
    return 'default', *plain, 'recompute', 'native'


def every(layers: Iterable[str] = (*LAYERS, *SETTINGS), **fixed: object) -> list[Column]:
    """Return all columns of ``layers`` in which the named fields have the given values."""
    columns = [
        Column(layer, road, channels_last, training)
        for layer in layers
        for road in roads(layer)
        for channels_last in (True, False)
        for training in (True, False)
        if not (training and layer.startswith('deploy'))
        if channels_last or training or layer not in SETTINGS
        # Who names a backend gets the default's kernels: asked where they reach furthest.
        if road != 'native' or (channels_last and training != layer.startswith('deploy'))
    ]
    return [c for c in columns if all(getattr(c, name) == value for name, value in fixed.items())]


def pairwise(layers: Iterable[str] = (*LAYERS, *SETTINGS), **fixed: object) -> list[Column]:
    """Return few of the columns that hold each pair of two fields' values that :func:`every` has."""
    columns = every(layers, **fixed)
    pairs = {c: set(combinations(enumerate((c.layer, c.road, c.channels_last, c.training)), 2)) for c in columns}
    left, chosen = set().union(*pairs.values()), []
    while left:
        chosen.append(max(columns, key=lambda c: len(pairs[c] & left)))
        left -= pairs[chosen[-1]]
    return sorted(chosen, key=columns.index)


def in_one_layout(chosen: Iterable[Column]) -> list[Column]:
    """Leave out the contiguous columns of layers without kernels: torch's operators answer in both formats alike."""
    return [c for c in chosen if c.channels_last or c.layer not in WITHOUT_KERNELS]


def columns(chosen: Iterable[Column]) -> pytest.MarkDecorator:
    """Parametrize a test by its columns."""
    return pytest.mark.parametrize('column', [pytest.param(c, id=str(c)) for c in chosen])


def dealt(
    name: str,
    values: Iterable,
    chosen: Iterable[Column],
    parts: int = 6,
    without: Callable[[object, Column], bool] = lambda value, column: False,
) -> pytest.MarkDecorator:
    """Parametrize a test by ``name`` and column: kernels meet every value, each other column every ``parts``-th.

    Each value is still asked of every layer's kernels, and of each road, memory format and mode. Pairs for which
    ``without(value, column)`` is true are left out.
    """

    def is_kernels(c: Column) -> bool:
        known = c.layer not in WITHOUT_KERNELS
        return known and ((c.channels_last and c.road == 'default') or (c.road == 'recompute' and c.layer in SETTINGS))

    pairs = [
        pytest.param(value, c, id=f'{getattr(value, "__name__", value)}-{c}')
        for i, value in enumerate(values)
        for j, c in enumerate(chosen)
        if (is_kernels(c) or (i + j) % parts == 0) and not without(value, c)
    ]
    return pytest.mark.parametrize((name, 'column'), pairs)


def made(name: str, road: str = 'default') -> nn.Module:
    """Return the named layer in train mode, before it is deployed, with norms and biases that training might give."""
    # torch.manual_seed formats a traceback for CUDA's sake: 2 ms, and this is called 10,000 times.
    torch.default_generator.manual_seed(sum(map(ord, name)))
    backend = {} if road in ('default', 'recompute') else dict(backend=road)
    window = dict(kernel_size=3, padding=1)
    if name == 'Conv2d':
        layer: nn.Module = nn.Conv2d(CHANNELS, CHANNELS, **window)
    elif name == 'SRU':
        layer = SRU(CHANNELS, **backend)
    elif name == 'CRU':
        layer = CRU(CHANNELS, **backend)
    elif name == 'Legacy':
        layer = LegacySCConv(CHANNELS, CHANNELS, **window)
    elif name in RIVALS:
        layer = RIVALS[name](CHANNELS, CHANNELS, **window)
    else:
        settings = SETTINGS.get(name.removeprefix('deploy '), {})
        if name in ARRANGEMENTS:
            settings = dict(arrangement=name)
        layer = SCConv(CHANNELS, CHANNELS, **{**window, **settings}, **backend, recompute=road == 'recompute')
    for module in layer.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 2)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    for key, p in layer.named_parameters():
        if key.endswith('bias'):
            nn.init.uniform_(p, -0.5, 0.5)
    if name == 'kept':
        keep_output(layer)
    return layer


def keep_output(layer: SCConv) -> None:
    """Tell the layer that a norm follows, as this package's backbones do."""
    assert hasattr(layer.cru, 'output_is_kept'), 'backbones tell it in another way now: say here how'
    layer.cru.output_is_kept = True


def plain(layer: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a copy that computes with plain operations, in ``dtype``, its weights contiguous."""
    return made_plain(copy.deepcopy(layer), dtype)


def made_plain(layer: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Bring a layer into that form in place."""
    for module in without_kernels(layer).modules():
        if hasattr(module, 'recompute'):
            module.recompute = False
    layer.to(dtype).to(memory_format=torch.contiguous_format)
    for module in layer.modules():
        # The older spectral_norm and weight_norm compute a tensor in a hook; it is no parameter, and stays behind.
        if isinstance(weight := vars(module).get('weight'), Tensor):
            module.weight = weight.detach().to(dtype)
    return layer


class Subject(NamedTuple):
    """A column's layer, its truth (plain, float64, never deployed) and an input of the column's memory format."""

    layer: nn.Module
    truth: nn.Module
    x: Tensor


def build(column: Column, change: Callable[[nn.Module], object] | None = None) -> Subject:
    """Return the column's layer and its truth, both changed by ``change``, the layer before it is deployed."""
    layer = build_layer(column, change)
    return Subject(layer, build_truth(column, change), laid_out(inputs(), column))


def build_layer(column: Column, change: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """Return the column's layer alone."""
    if column.road == 'native' and (reason := compiled.unavailable()):
        pytest.skip(reason)
    layer = changed(column, change)
    if column.deployed:
        layer.switch_to_deploy()
    return laid_out(layer, column)


def build_truth(column: Column, change: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """Return the column's truth alone: made again from the same seed, for some changes cannot be copied."""
    return made_plain(changed(column, change))


def changed(column: Column, change: Callable[[nn.Module], object] | None) -> nn.Module:
    layer = made(column.layer, column.road)
    if change:
        change(layer)
    return layer.train(column.training)


def inputs(batch: int = 2, channels: int = CHANNELS, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


def laid_out(thing, column: Column):
    """Return a tensor or module in the column's memory format."""
    return thing.to(memory_format=torch.channels_last) if column.channels_last else thing


Answer = dict[str, Tensor]
Question = Callable[[nn.Module, Tensor, dict[str, Tensor]], Answer]


def weights_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def answer(question: Question, layer: nn.Module, x: Tensor, names: Iterable[str]) -> Answer:
    """Return the answer, with the state that the question leaves in norms."""
    weights = dict(layer.named_parameters())
    answered = question(layer, x, {name: weights[name] for name in names})
    state = {f'buffer {name}': b for name, b in layer.named_buffers() if 'running' in name}
    return {**answered, **state}


# Other roads and memory formats are asked the same: questions that live on are answered by their layers' truths once.
_truths: WeakKeyDictionary[Question, dict[tuple, Answer]] = WeakKeyDictionary()


def truth_of(question: Question, column: Column, with_weights: bool, requires_grad: bool) -> Answer:
    """Return the answer of the unchanged column's truth."""
    known = _truths.setdefault(question, {})
    key = (column.layer, column.training, with_weights, requires_grad)
    if key not in known:
        truth = build_truth(column)
        names = weights_of(truth) if with_weights else ()
        answered = answer(question, truth, inputs().double().requires_grad_(requires_grad), names)
        known[key] = {name: t.detach() for name, t in answered.items()}
    return known[key]


def check(
    question: Question,
    column: Column,
    change: Callable[[nn.Module], object] | None = None,
    after: Callable[[nn.Module], object] | None = None,
    refuses: str | None = None,
    torch_refuses: str = '\0',
    rtol: float = 1e-4,
    requires_grad: bool = True,
    with_weights: bool = True,
    with_statistics: bool = True,
) -> None:
    """Compare a column's answer with the truth's.

    Args:
        question: The row.
        column: The column.
        change: Applied to the layer when it is made.
        after: Applied to the finished layer and to the truth, after a first call has filled whatever caches there are.
        refuses: Pattern of the message with which the column has to refuse the change or the question; None where it
            has to answer.
        torch_refuses: Part of a message with which torch itself refuses the question, whatever the road.
        rtol: Error allowed, as a share of the largest value of a tensor.
        requires_grad: Of the input.
        with_weights: Whether the question is about the weights, too.
        with_statistics: Whether the norms' running statistics are compared, too.
    """
    # The deploy form has other weights; only its input is derived.
    with_weights = with_weights and not column.deployed
    x = laid_out(inputs(), column)
    if refuses is not None:
        assert after is None, 'a refusal is due before the layer is finished, or at the question'

        def build_and_ask() -> None:
            layer = build_layer(column, change)
            answer(question, layer, x.requires_grad_(requires_grad), weights_of(layer) if with_weights else ())

        with pytest.raises((RuntimeError, ValueError), match=refuses):
            build_and_ask()
        return
    layer = build_layer(column, change)
    truth = build_truth(column, change) if change or after else None
    if after:
        with torch.no_grad():
            training = layer.training
            layer.eval()(x)
            layer.train(training)
        after(truth)
        after(layer)
    if truth is None:
        want = truth_of(question, column, with_weights, requires_grad)
        names = list(weights_of(layer)) if with_weights else []
    else:
        names = list(weights_of(truth)) if with_weights else []
        want = answer(question, truth, x.double().contiguous().requires_grad_(requires_grad), names)
    try:
        got = answer(question, layer, x.requires_grad_(requires_grad), names)
    except Exception as error:
        accept(torch_refuses in str(error), error)
        return
    if column.deployed or not with_statistics:
        want = {name: t for name, t in want.items() if not name.startswith('buffer')}
        got = {name: t for name, t in got.items() if name in want}
    assert_same(got, want, rtol)


def accept(is_refusal: bool, error: Exception) -> None:
    """Let an exception pass that is a refusal in words; raise any other again."""
    if not is_refusal:
        raise error


def names_way_out(error: BaseException) -> bool:
    return any(way in str(error) for way in (*WAYS_OUT, REASON))


def assert_same(got: Answer, want: Answer, rtol: float = 1e-4) -> None:
    """Compare with float64: an error may be ``rtol`` of its tensor's largest value, or 1e-5 of the largest of all.

    What is zero but for rounding, as the gradient of a bias in front of a BN, may be 1e-3 of the largest of all.
    """
    assert got.keys() == want.keys()
    most = max([1.0, *(t.detach().abs().max().item() for t in want.values() if t.numel())])
    for name, right in want.items():
        left = got[name]
        assert left.shape == right.shape, f'{name}: shape {tuple(left.shape)}, plain {tuple(right.shape)}'
        if not right.numel():
            continue
        left, right = left.detach().double(), right.detach().double()
        assert left.isfinite().all() or not right.isfinite().all(), f'{name}: not finite, plain is'
        off, largest = (left - right).abs().max().item(), right.abs().max().item()
        floor = (1e-3 if largest < 1e-10 * most else 1e-5) * most
        assert off <= rtol * largest + floor, f'{name}: off by {off:.2g}, the largest plain value is {largest:.2g}'


def loss(y: Tensor) -> Tensor:
    """Return a scalar whose gradient is different at every position."""
    v = torch.linspace(-2, 2, y.numel(), dtype=y.dtype, device=y.device).sin().view(y.shape)
    return (v * y + y.square() / 2).sum()


def first(layer: nn.Module, x: Tensor, weights: dict[str, Tensor]) -> Answer:
    """Ask for the output and the first derivatives; in eval mode for the output of inference, too."""
    y = layer(x)
    wrt = {**({'x': x} if x.requires_grad else {}), **weights}
    grads = torch.autograd.grad(loss(y), list(wrt.values()), allow_unused=True) if wrt else ()
    inferred = {} if getattr(layer, 'training', True) else output(layer, x, weights)
    return {'y': y.detach(), **inferred, **named(wrt, grads)}


def output(layer: nn.Module, x: Tensor, weights: dict[str, Tensor]) -> Answer:
    """Ask for the output of inference."""
    with torch.no_grad():
        return {'y without gradients': layer(x)}


def named(wrt: dict[str, Tensor], grads: Iterable[Tensor | None]) -> Answer:
    """Name gradients after their tensors; a missing one is zero, as torch's optimizers take it."""
    return {
        f'd {name}': torch.zeros_like(t) if g is None else g for (name, t), g in zip(wrt.items(), grads, strict=True)
    }


# --- processes: a crash must not end the tests ---

_pipe = None
SKIPPED = 'Skipped in the process: '


def note(text: str) -> None:
    """Say in a process of :func:`apart` what runs next, for the message if that ends the process."""
    if _pipe is not None:
        _pipe.send(text)


def apart(function: Callable[..., None], *args: object) -> None:
    """Run ``function(*args)`` in a process of its own: its traceback or the signal that ends it fails, a skip skips."""
    ours, theirs = forks.CONTEXT.Pipe(duplex=False)
    process = forks.CONTEXT.Process(target=_run, args=(theirs, function, args))
    process.start()
    theirs.close()
    said: list[str] = []
    try:
        while ours.poll(300):
            said.append(ours.recv())
    except EOFError:
        pass
    process.join(5)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f'nothing for five minutes after {said[-1:]}')
    if process.exitcode:
        ending = f'signal {-process.exitcode}' if process.exitcode < 0 else f'exit status {process.exitcode}'
        pytest.fail(f'{ending} at: {said[-1] if said else "the start"}')
    if said and said[-1].startswith('Traceback'):
        pytest.fail(said[-1])
    if said and said[-1].startswith(SKIPPED):
        pytest.skip(said[-1].removeprefix(SKIPPED))


def _run(pipe, function: Callable[..., None], args: tuple) -> None:
    global _pipe
    _pipe = pipe
    torch.set_num_threads(1)
    try:
        function(*args)
        pipe.send('done')
    except pytest.skip.Exception as skip:
        pipe.send(f'{SKIPPED}{skip}')
    except BaseException:
        pipe.send('Traceback of the process:\n' + traceback.format_exc())
