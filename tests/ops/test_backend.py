"""The choice of a backend, and backends that cannot run."""

import dataclasses
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmscconv import SRU, SCConv, ops
from mmscconv.complexity.counting import count
from mmscconv.ops import backend, compiled
from mmscconv.ops.backend import choose_backend, triton_unavailable

X = torch.randn(2, 8, 5, 5)


@pytest.fixture
def broken_compiler(monkeypatch):
    """No kernels: the compiler fails, and nothing is known of an earlier success."""
    caches = (compiled.unavailable, compiled.build, compiled._library, ops.backend._warn_once)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setenv('CC', 'false')
    yield
    for cache in caches:
        cache.cache_clear()


def test_order_of_choice(monkeypatch):
    assert choose_backend(X) == 'native'
    monkeypatch.setenv('MMSCCONV_BACKEND', 'plain')
    assert choose_backend(X) == 'plain'
    assert choose_backend(X, 'native') == 'native'
    monkeypatch.setenv('MMSCCONV_BACKEND', '')
    assert choose_backend(X) == 'native'


def test_layers_pass_it_on(called):
    SCConv(8, 8, 3, padding=1, backend='plain')(X)
    assert called == []
    SCConv(8, 8, 3, padding=1)(X)
    assert called == ['sru_forward', 'fuse_forward']


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be one of \('plain', 'native', 'triton'\)"):
        SCConv(8, 8, 3, backend='cuda')
    monkeypatch.setenv('MMSCCONV_BACKEND', 'fast')
    with pytest.raises(ValueError, match="got 'fast'"):
        SRU(8)(X)


def test_what_cannot_run_raises_if_asked_for_and_falls_back_otherwise(monkeypatch):
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run: .* not torch.float64"):
        SRU(8, backend='native').double()(X.double())
    assert choose_backend(X.double()) == 'plain'
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(RuntimeError, match=r"backend 'triton' cannot run: .*(CUDA tensor|not installed|older than)"):
        SRU(8, backend='triton')(X)


def test_without_a_compiler(broken_compiler, monkeypatch):
    with pytest.raises(RuntimeError, match=r"backend 'native' cannot run: .*false failed"):
        choose_backend(X, 'native')
    ops.backend._warn_once.cache_clear()
    with pytest.warns(UserWarning, match='runs its plain PyTorch form on the CPU'):
        assert choose_backend(X) == 'plain'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        SCConv(8, 8, 3)(X)  # it has been said


def test_cache_that_cannot_be_written(broken_compiler, monkeypatch, tmp_path):
    monkeypatch.delenv('CC')
    (tmp_path / 'file').touch()
    monkeypatch.setenv('MMSCCONV_CACHE_DIR', str(tmp_path / 'file'))
    assert 'MMSCCONV_CACHE_DIR' in compiled.unavailable()


@pytest.mark.parametrize(
    ('version', 'reason'),
    [('3.1.0', 'triton 3.1.0 is older than 3.2'), ('3.10.1+git', 'it needs a CUDA tensor'), (None, 'is not installed')],
)
def test_versions_of_triton(version, reason, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setitem(sys.modules, 'triton', version and SimpleNamespace(__version__=version))
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run: .*{reason}"):
        SRU(8, backend='triton')(X)


def test_compiled_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('MMSCCONV_CACHE_DIR', str(tmp_path))
    small = dataclasses.replace(compiled.KERNELS, sources=('fingerprint.c',))
    files = []
    for _ in range(2):
        built = compiled.build.__wrapped__(small)
        assert not isinstance(built, str), built
        files.append({f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in tmp_path.iterdir()})
    assert files[0] == files[1]
    assert list(files[0]) == [built]  # nothing is left beside it


def test_export_and_counting_see_the_plain_form(called):
    model = SCConv(8, 8, 3, padding=1, backend='native').eval()
    for strict in (False, True):
        names = {str(n.target) for n in torch.export.export(model, (X,), strict=strict).graph.nodes}
        assert 'aten.sigmoid.default' in names  # the gate's
        assert not any('mmscconv' in name for name in names)
    torch.jit.trace(model, X, check_trace=False)
    count(nn.Sequential(nn.Conv2d(3, 8, 1), model), (8, 8))
    assert called == []


@pytest.mark.parametrize('backend', ['native', None])
def test_compile_keeps_the_graph_whole(backend):
    model = SCConv(8, 8, 3, padding=1, backend=backend)
    graphs = []

    def look(graph, example_inputs):
        graphs.append({str(n.target) for n in graph.graph.nodes})
        return graph

    x = X.clone().requires_grad_()
    out = torch.compile(model, backend=look, fullgraph=True)(x)
    torch.testing.assert_close(out, model(x))
    # By itself, it leaves to inductor what inductor fuses as well.
    assert {'sru', 'fuse'} & {name.removeprefix('mmscconv.') for name in graphs[0]} == (
        {'sru', 'fuse'} if backend else set()
    )


def test_compiled_deploy_form_keeps_the_kernels_that_reach_further():
    model = SCConv(8, 8, 3, padding=1).eval()
    model.switch_to_deploy()
    names = set()

    def look(graph, example_inputs):
        names.update(str(n.target) for n in graph.graph.nodes)
        return graph

    x = X.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=look, fullgraph=True)(x), model(x))
    assert 'mmscconv.scconv' in names


def test_tools_show_one_line(tool, monkeypatch, tmp_path):
    monkeypatch.setenv('MMSCCONV_BACKEND', 'triton')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    layer = ('layer', '--channels', '16', '--sizes', '8', '--rounds', '1', '--device', 'cpu')
    status, _, err = tool('benchmark', *layer, '--out', tmp_path)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: backend 'triton' cannot run: ")


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize('deployed', [False, True], ids=['training-form', 'deploy-form'])
def test_weights_of_another_dtype_than_the_input_raise(deployed, dtype):
    # The kernels read them as fp32: they must not get them.
    conv = SCConv(32, 32, 3, padding=1).eval()
    conv.cru.output_is_kept = True
    if deployed:
        conv.switch_to_deploy()
    x = torch.randn(2, 32, 5, 5).contiguous(memory_format=torch.channels_last)
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=f'CRU has weights of {dtype} and got an input of torch.float32'),
    ):
        conv.to(dtype)(x)


@pytest.fixture
def card(monkeypatch):
    """A CUDA device that is none, of a given capability, whose first kernel does what is asked."""

    zeros, ones = torch.zeros, torch.ones

    def make(capability, first_kernel):
        backend._tried_on.cache_clear()
        backend._warn_once.cache_clear()
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: capability)
        monkeypatch.setattr(backend, 'kernels', lambda name: SimpleNamespace(sru_forward=first_kernel))
        monkeypatch.setattr(torch, 'zeros', lambda *a, device, **k: zeros(*a, **k))
        monkeypatch.setattr(torch, 'ones', lambda *a, device, **k: ones(*a, **k))

    yield make
    backend._tried_on.cache_clear()


def test_a_card_that_triton_does_not_serve_gets_the_plain_form(card):
    card((6, 1), lambda *_: None)
    assert backend.triton_fails_on(0, False) == 'its kernels need compute capability 7.0, cuda:0 has 6.1'
    card((7, 5), lambda *_: None)
    assert backend.triton_fails_on(1, False) is None
    assert backend.triton_fails_on(1, True) == 'its kernels need compute capability 8.0 for bf16, cuda:1 has 7.5'


def test_a_first_kernel_that_fails_is_a_reason_and_a_warning(card):
    """Without a C compiler, for example, which Triton needs."""
    calls = []

    def fail(*_):
        calls.append(1)
        raise RuntimeError('Failed to find C compiler.\nPlease specify via CC')

    card((9, 0), fail)
    with pytest.warns(UserWarning, match='the GPU: a first kernel fails on cuda:0: Failed to find C compiler'):
        reason = backend.triton_fails_on(0, True)
    assert reason.endswith('Failed to find C compiler. Please specify via CC')
    assert backend.triton_fails_on(0, True) == reason and len(calls) == 1


@pytest.mark.skipif(triton_unavailable() is not None, reason=str(triton_unavailable()))
def test_interpreted_backend_is_refused_without_the_variable(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(RuntimeError, match='TRITON_INTERPRET=1'):
        choose_backend(torch.zeros(1, 2, 1, 1), 'triton')
