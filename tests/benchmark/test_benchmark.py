"""The benchmark: what it refuses, what it writes and what it counts; no test looks at how long anything took."""

import copy
import csv
import importlib.util
import math
import re
import types

import pytest
import torch
from torch import nn

from helpers.running_tools import NARROW_DETECTOR
from mmscconv import SRU, SCConv, ops
from mmscconv.benchmark import machine, ncnn, onnx, openvino, profiling
from mmscconv.benchmark.candidates import CANDIDATES
from mmscconv.benchmark.config_subject import ConfigSubject
from mmscconv.benchmark.correctness import DiffersError, check_flips, check_network, reference_of, with_shut_gates
from mmscconv.benchmark.jobs import Job, Setting
from mmscconv.benchmark.memory import saved_activations
from mmscconv.benchmark.reporting import plot, setting_table, summarize
from mmscconv.benchmark.runners import RUNNERS, prepare, refusal
from mmscconv.benchmark.session import Competitor, Plan, lineup, measure
from mmscconv.benchmark.subjects import BackboneSubject, LayerSubject
from mmscconv.benchmark.timing import Quartiles, alternate, ratios, seconds
from mmscconv.benchmark.unofficial import unofficial_like
from mmscconv.errors import UserError
from mmscconv.export.custom_op import library
from mmscconv.export.onnx_file import open_session
from mmscconv.export.openvino_file import compile_file

CPU = torch.device('cpu')
QUICK = ['--rounds', 2, '--warmup', 1, '--batches', 2]
TINY_LAYER = ['layer', '--channels', 16, '--sizes', 9, *QUICK]


def setting(runner='eager', mode='forward', dtype='fp32', memory_format='nchw', batch=2, size=(9, 9)):
    return Setting(runner, dtype, memory_format, mode, batch, size)


def rows_of(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith('#')]
    return list(csv.DictReader(lines))


def test_ratios_are_taken_round_by_round():
    assert ratios([1.0, 4.0, 3.0], [2.0, 1.0, 3.0]) == [0.5, 4.0, 1.0]
    assert Quartiles.of([0.5, 4.0, 1.0]) == Quartiles(1.0, 0.75, 2.5)
    assert Quartiles.of([2.0]) == Quartiles(2.0, 2.0, 2.0)


def test_each_memory_format_has_a_panel():
    def summary():
        return summarize([Competitor(name, 'nchw', lambda: None, None, None, [1.0]) for name in ('conv', 'scconv')])

    settings = [Setting('eager', 'fp32', layout, 'forward', 8, (56, 56)) for layout in ('nchw', 'channels_last')]
    panels = plot([(setting, summary()) for setting in settings]).axes
    assert [axes.get_title() for axes in panels] == [
        'eager, fp32, nchw, forward',
        'eager, fp32, channels_last, forward',
    ]
    assert {len(line.get_xdata()) for axes in panels for line in axes.lines if line.get_marker() == 'o'} == {1}


def test_summary_of_known_times():
    def competitor(name, times, saved):
        return Competitor(name, 'nchw', lambda: None, saved, None, times)

    conv = competitor('conv', [4.0, 2.0, 8.0], 200)
    folded = competitor('conv+deploy', [2.0, 2.0, 2.0], None)
    fast = competitor('scconv+deploy', [1.0, 2.0, 4.0], 300)
    ours = summarize([conv, folded, fast])[2]
    assert ours.time == Quartiles(2.0, 1.5, 3.0)
    assert ours.faster == Quartiles(2.0, 1.5, 3.0)  # 4, 1 and 2
    assert ours.faster_than_folded == Quartiles(1.0, 0.75, 1.5)
    assert ours.saved_share == 1.5
    table = setting_table(summarize([conv, folded, fast])).markdown()
    assert '| scconv+deploy | nchw | 2000 | 1500 - 3000 | 2.000 (1.500 - 3.000) | 1.000 (0.750 - 1.500) |' in table
    assert 'peak device memory' not in table


def test_candidates_take_turns_and_none_is_always_first():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in 'abc'}
    rounds = list(alternate(runs, 3, CPU, repeats=2))
    assert ''.join(calls) == 'aabbccbbccaaccaabb'
    assert [list(times) for times in rounds] == [['a', 'b', 'c']] * 3


class Event:
    """An event of CUDA that remembers its stream; two are six milliseconds apart."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream=None):
        self.stream = stream

    def elapsed_time(self, end):
        assert self.stream == end.stream == 'stream of cuda:1'  # without one, a stream of the current device
        return 6.0


def test_a_gpu_is_timed_on_its_own_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: f'stream of {device}')
    assert seconds(lambda: None, torch.device('cuda:1'), 2) == 0.003


@pytest.mark.parametrize(('name', 'chosen'), [('cuda:1', [1]), ('cuda', []), ('cpu', [])])
def test_the_device_is_the_current_one(name, chosen, monkeypatch):
    found = []
    monkeypatch.setattr(machine, 'device_of', torch.device)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: found.append(device.index))
    assert machine.device_to_measure(name) == torch.device(name)
    assert found == chosen


def test_onnx_runtime_takes_the_device_of_the_input(monkeypatch):
    sessions = []
    monkeypatch.setattr('onnxruntime.get_available_providers', lambda: ['CUDAExecutionProvider'])
    monkeypatch.setattr(onnx, 'export_onnx', lambda *args: None)
    monkeypatch.setattr(onnx, 'open_session', lambda *args: sessions.append(args))
    monkeypatch.setattr(onnx, '_Bound', lambda *args: None)
    model = nn.Module()
    model.forward = lambda x: torch.zeros(1)
    onnx.session_of(model, types.SimpleNamespace(device=torch.device('cuda:1')))
    assert sessions[0][1] == [('CUDAExecutionProvider', {'device_id': 1}), 'CPUExecutionProvider']


def test_saved_activations_of_known_networks():
    x = torch.randn(2, 4, 5, 5)
    conv = nn.Conv2d(4, 6, 1)
    given = list(conv.parameters())
    assert saved_activations(lambda: conv(x), given, []) == x.nbytes
    assert saved_activations(lambda: conv(x), given, [x]) == x.nbytes  # once
    relu = nn.Sequential(conv, nn.ReLU())
    assert saved_activations(lambda: relu(x), given, []) == x.nbytes + 4 * 2 * 6 * 25
    with torch.autocast('cpu', torch.bfloat16):
        assert saved_activations(lambda: conv(x), given, []) == x.nbytes // 2  # and not the weights in bf16


def test_recomputing_layer_keeps_its_input_alone():
    layer = nn.Sequential(SCConv(16, 16, 3, padding=1, recompute=True))
    x = torch.randn(2, 16, 9, 9)
    assert saved_activations(lambda: layer(x), layer.parameters(), [x]) == x.nbytes


@pytest.mark.parametrize('stride', [1, 2])
def test_unofficial_module_has_the_convolutions_shape_and_the_described_result(stride):
    module = unofficial_like(SCConv(16, 16, 3, stride, 1)).double()
    x = torch.randn(2, 16, 9, 9, dtype=torch.float64)
    assert module(x).shape == nn.Conv2d(16, 16, 3, stride, 1).double()(x).shape
    sru, cru = module[-2:]
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    normalized = nn.functional.group_norm(x * 1.0, 16)
    # std of 16 values with Bessel's correction, where GN divides by 16.
    gate = torch.sigmoid(normalized * math.sqrt(15 / 16) / 16)
    x1, x2 = torch.where(gate > 0.5, x, gate * x), torch.where(gate > 0.5, 0, gate * x)
    expected = torch.cat((x1[:, :8] + x2[:, 8:], x1[:, 8:] + x2[:, :8]), 1)
    torch.testing.assert_close(sru(x), expected, rtol=1e-4, atol=1e-4)
    up, low = cru.squeeze1(x[:, :8]), cru.squeeze2(x[:, 8:])
    y1, y2 = cru.gwc(up) + cru.pwc1(up), torch.cat((cru.pwc2(low), low), 1)
    weights = torch.cat((y1, y2), 1).mean((2, 3), keepdim=True).softmax(1)
    torch.testing.assert_close(cru(x), weights[:, :16] * y1 + weights[:, 16:] * y2)


def test_unofficial_module_refuses_what_it_cannot_replace():
    with pytest.raises(ValueError, match='cannot replace SCConv'):
        unofficial_like(SCConv(16, 32, 3))


def test_lineup_of_a_deploy_runner_has_the_plain_baseline_too():
    assert lineup(['conv', 'cru'], 'eager') == [('conv', False), ('cru', False)]
    assert lineup(['conv', 'cru'], 'compile+deploy') == [('conv', False), ('conv', True), ('cru', True)]


def test_what_cannot_be_run_is_known():
    possible = {(r, m) for r in RUNNERS for m in ('forward', 'train') if refusal(setting(r, m)) is None}
    assert possible == {('eager', 'train'), ('compile', 'train'), *((r, 'forward') for r in RUNNERS)}
    assert 'ONNX Runtime runs fp32' in refusal(setting('onnxruntime', dtype='bf16'))
    assert 'OpenVINO runs fp32 and bf16' in refusal(setting('openvino+deploy', dtype='fp16'))
    assert refusal(setting('openvino', dtype='bf16')) is None
    assert 'ncnn runs fp32' in refusal(setting('ncnn', dtype='bf16'))
    assert 'NCHW alone' in refusal(setting('openvino', memory_format='channels_last'))


@pytest.mark.parametrize('mode', ['forward', 'train'])
def test_layer_eager_in_every_form(mode, tool, tmp_path):
    status, out, err = tool(
        'benchmark', *TINY_LAYER, '--norm', '--modes', mode, '--candidates', *CANDIDATES, '--memory-formats', 'best',
        'nchw', '--dtypes', 'fp32', 'bf16', '--out', tmp_path,
    )  # fmt: skip
    assert status == 0, err
    rows = rows_of(tmp_path / 'layer.csv')
    assert len(rows) == 2 * 2 * len(CANDIDATES) * 2  # formats, dtypes, rounds
    assert all(float(row['seconds']) > 0 and row['subject'] == 'layer' for row in rows)
    assert {row['memory_format'] for row in rows} <= {'nchw', 'channels_last'}
    assert all(bool(row['saved_bytes']) == (mode == 'train') for row in rows)
    text = (tmp_path / 'layer.md').read_text()
    for part in (
        '- command: python tools/benchmark.py layer',
        '- CPU: ',
        '- torch: ',
        '- variables: ',
        're-composition',
    ):
        assert part in text
    assert text.count('| scconv-recompute |') == 4
    assert ('saved activations, MB' in text) == (mode == 'train')
    assert (tmp_path / 'layer.png').stat().st_size > 1000
    assert text.split('## ', 1)[1].split('\n\n')[1] in out


def test_backbone_and_its_deploy_form(tool, tmp_path):
    status, out, err = tool(
        'benchmark', 'backbone', '--depth', 18, '--sizes', 32, '32x64', *QUICK, '--runners', 'eager+deploy', 'eager',
        '--modes', 'train', 'forward', '--memory-formats', 'nchw', '--out', tmp_path,
    )  # fmt: skip
    assert status == 0, err
    assert 'left out: eager+deploy, fp32, train, 2x32x32, nchw: the deploy form cannot be trained' in out
    names = [row['candidate'] for row in rows_of(tmp_path / 'backbone.csv') if row['runner'] == 'eager+deploy']
    assert names == ['conv', 'conv+deploy', 'scconv+deploy'] * 4
    assert 'times faster than conv+deploy' in out
    assert '2x32x64' in (tmp_path / 'backbone.md').read_text()


def test_profile_tells_convolutions_apart(monkeypatch, tool, tmp_path):
    monkeypatch.setattr(profiling, 'LEAST_SHARE', 0)  # or what is shown would depend on how long it took
    args = ('--channels', 64, '--batches', 1, '--sizes', 8, '--rounds', 1, '--warmup', 1, '--memory-formats', 'nchw')
    status, _, stderr = tool('benchmark', 'layer', *args, '--modes', 'train', '--profile', 3, '--out', tmp_path)
    assert status == 0, stderr
    conv, scconv = (tmp_path / 'layer.md').read_text().split('###')[1:]
    assert conv.startswith(' conv, nchw: operators in eager, fp32, train, 1x8x8, nchw')
    assert re.search(r'convolution, 3x3 \| 1 \| ', conv) and re.search(r'convolution_backward, 3x3 \| 1 \| ', conv)
    assert re.search(r'convolution, 3x3, 2 groups \| 1 \| ', scconv) and 'mmscconv' in scconv and 'mmscconv' not in conv
    for text in (conv, scconv):
        shares = [float(cell) for cell in re.findall(r'([\d.]+)% \|', text)]
        assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))


def test_config_beside_its_twin(tool, root, tmp_path):
    status, _, err = tool(
        'benchmark', 'config', root / 'configs' / 'retinanet_scconv_r50_coco.py',
        root / 'configs' / 'retinanet_r50_coco.py', '--sizes', '64x96', *QUICK, '--modes', 'forward', 'train',
        '--memory-formats', 'nchw', '--out', tmp_path, '--cfg-options', *NARROW_DETECTOR,
    )  # fmt: skip
    assert status == 0, err
    rows = rows_of(tmp_path / 'config.csv')
    assert [(row['mode'], row['candidate']) for row in rows[::2]] == [('forward', 'conv')] * 2 + [('train', 'conv')] * 2


def test_config_in_onnx_runtime(tool, root, tmp_path):
    status, out, err = tool(
        'benchmark', 'config', root / 'configs' / 'retinanet_scconv_r50_coco.py',
        root / 'configs' / 'retinanet_r50_coco.py', '--sizes', '64x96', *QUICK, '--runners', 'onnxruntime-op+deploy',
        '--out', tmp_path, '--cfg-options', *NARROW_DETECTOR,
    )  # fmt: skip
    assert status == 0, err
    assert '| scconv+deploy | nchw |' in out


def test_config_of_a_classifier_and_one_without_scconv(tool, root, tmp_path):
    plain = root / 'configs' / 'cifar' / 'resnet56_cifar10.py'
    sizes = ['--sizes', 32, *QUICK, '--memory-formats', 'nchw', '--out', tmp_path]
    status, _, err = tool(
        'benchmark', 'config', root / 'configs' / 'cifar' / 'scconv_resnet56_cifar10.py', plain, *sizes, '--modes',
        'train',
    )  # fmt: skip
    assert status == 0, err
    status, _, err = tool('benchmark', 'config', plain, plain, *sizes)
    assert status == 2
    assert 'has no SCConv' in err


@pytest.mark.parametrize('key', ['backbone.depth', 'modle.backbone.depth'])
def test_options_that_nothing_reads_are_refused(key, root):
    folder = root / 'configs' / 'cifar'
    pair = [str(folder / f'{name}_cifar10.py') for name in ('scconv_resnet56', 'resnet56')]
    top = key.partition('.')[0]
    with pytest.raises(UserError, match=rf"--cfg-options sets '{top}', .*scconv_resnet56_cifar10\.py .* model\."):
        ConfigSubject(*pair, {key: 20})
    assert ConfigSubject(*pair, {'model.backbone.depth': 20}).configs[False].model.backbone.depth == 20


def test_a_twin_with_scconv_is_refused(root):
    config = str(root / 'configs' / 'cifar' / 'scconv_resnet56_cifar10.py')
    subject = ConfigSubject(config, config, {'model.backbone.depth': 8})
    with pytest.raises(UserError, match=r'scconv_resnet56_cifar10\.py, the twin, has SCConv.*--beside'):
        subject.build(CANDIDATES['conv'], CPU)


def test_further_configs_take_turns(tool, root, tmp_path):
    """A thinner plain network and a rival have no SCConv."""
    folder = root / 'configs' / 'cifar_short'
    pair = [folder / f'{name}_cifar10.py' for name in ('scconv_resnet20', 'resnet20')]
    beside = [folder / f'{name}_cifar10.py' for name in ('thin12-resnet20', 'spconv_resnet20')]
    sizes = ['--sizes', 32, *QUICK, '--memory-formats', 'nchw', '--modes', 'train', '--out', tmp_path]
    status, out, err = tool('benchmark', 'config', *pair, '--beside', *beside, *sizes)
    assert status == 0, err
    names = ['conv', 'scconv', 'thin12-resnet20_cifar10', 'spconv_resnet20_cifar10']
    rows = rows_of(tmp_path / 'config.csv')
    assert [row['candidate'] for row in rows[:4]] == names and all(f'| {name} | nchw |' in out for name in names)
    kept = {row['candidate']: int(row['saved_bytes']) for row in rows}
    assert kept['thin12-resnet20_cifar10'] < kept['conv']  # 12 channels in the place of 16
    status, _, err = tool('benchmark', 'config', *pair, '--beside', *beside, beside[0], *sizes)
    assert status == 2 and 'two candidates named thin12-resnet20_cifar10' in err


def test_sru_beside_a_copy(tool, tmp_path):
    status, out, err = tool(
        'benchmark', 'sru', '--channels', 16, '--sizes', 9, *QUICK, '--dtypes', 'fp32', 'bf16', '--out', tmp_path
    )
    assert status == 0, err
    fast = ops.choose_backend(torch.zeros(1))
    names = {row['candidate'] for row in rows_of(tmp_path / 'sru.csv')}
    assert names == {'copy', *(f'{b} {p}' for b in ('plain', fast) for p in ('forward', 'backward'))}
    x = 2 * 16 * 81 * 4 / 1e6
    line = next(line for line in out.splitlines() if line.startswith('| plain backward |')).split(' | ')
    assert (line[2], line[5]) == (f'{3 * x:.1f}', f'{5 * x:.1f}')
    assert '## bf16, channels_last, 2x9x9' in out


def test_onnx_runtime(tool, tmp_path):
    runners = ['onnxruntime', 'onnxruntime+deploy', 'onnxruntime-op+deploy']
    status, out, err = tool('benchmark', *TINY_LAYER, '--norm', '--runners', *runners, '--out', tmp_path)
    assert status == 0, err
    assert '| scconv | nchw |' in out
    assert out.count('| scconv+deploy | nchw |') == 2


@pytest.mark.apart
@pytest.mark.parametrize('runtime', ['openvino', 'ncnn'])
def test_openvino_and_ncnn(runtime, tool, tmp_path):
    runners = [runtime, f'{runtime}+deploy']
    status, out, err = tool('benchmark', *TINY_LAYER, '--norm', '--runners', *runners, '--out', tmp_path)
    assert status == 0, err
    assert '| scconv | nchw |' in out
    assert '| scconv+deploy | nchw |' in out
    assert re.search(rf'- {runtime}: \d', (tmp_path / 'layer.md').read_text())


@pytest.mark.apart
def test_config_in_ncnn(tool, root, tmp_path):
    status, out, err = tool(
        'benchmark', 'config', root / 'configs' / 'retinanet_scconv_r50_coco.py',
        root / 'configs' / 'retinanet_r50_coco.py', '--sizes', '64x96', *QUICK, '--runners', 'ncnn+deploy',
        '--out', tmp_path, '--cfg-options', *NARROW_DETECTOR,
    )  # fmt: skip
    assert status == 0, err
    assert '| scconv+deploy | nchw |' in out


def test_openvino_is_asked_for_the_precision_of_the_setting(monkeypatch):
    asked = []
    monkeypatch.setattr(
        openvino, 'compile_file', lambda file, precision: (asked.append(precision), compile_file(file, 'fp32'))[1]
    )
    model = LayerSubject(16, 1, True, {}).build(CANDIDATES['scconv'], CPU)
    x = torch.randn(2, 16, 9, 9)
    for dtype in ('fp32', 'bf16'):
        job = prepare(model, x, setting('openvino', dtype=dtype), 'nchw', deployed=False, graph_is_whole=True)
        check_network(job, reference_of(model, job), 'scconv')
    assert asked == ['fp32', 'bf16']


def test_runtimes_of_the_cpu_do_not_take_tensors_of_a_gpu():
    x = types.SimpleNamespace(device=torch.device('cuda'))
    with pytest.raises(UserError, match='the runner openvino is for the CPU: --device cpu'):
        openvino.program_of(torch.nn.Identity(), x, 'fp32')
    with pytest.raises(UserError, match='the runner ncnn is for the CPU: --device cpu'):
        ncnn.network_of(torch.nn.Identity(), x)


def test_runner_with_the_op_uses_it(monkeypatch):
    sessions = []
    monkeypatch.setattr(onnx, 'open_session', lambda *args: (sessions.append(args), open_session(*args))[1])
    model = LayerSubject(16, 1, True, {}).build(CANDIDATES['scconv'], CPU)
    job = prepare(
        model, torch.randn(2, 16, 9, 9), setting('onnxruntime-op+deploy'), 'nchw', deployed=True, graph_is_whole=True
    )
    check_network(job, reference_of(model, job), 'scconv')
    assert sessions[0][2] == library()


def test_the_op_does_not_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr('onnxruntime.get_available_providers', lambda: ['CUDAExecutionProvider'])
    x = types.SimpleNamespace(device=torch.device('cuda'))
    with pytest.raises(UserError, match='runs on the CPU alone'):
        onnx.session_of(torch.nn.Identity(), x, custom_op=True)


def test_compile_freezes_the_weights():
    model = LayerSubject(16, 1, True, {}).build(CANDIDATES['cru'], CPU)
    x = torch.randn(2, 16, 9, 9)
    job = prepare(model, x, setting('compile'), 'channels_last', deployed=False, graph_is_whole=True)
    check_network(job, reference_of(model, job), 'cru')
    wanted = job.forward()[0].clone()
    job.model[1].running_var.mul_(4)  # of which the graph has the root, a constant
    assert torch.equal(job.forward()[0], wanted)


def test_missing_onnx_runtime_is_one_line(monkeypatch, tool, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    status, _, err = tool('benchmark', *TINY_LAYER, '--runners', 'onnxruntime', '--out', tmp_path)
    assert status == 2
    remedy = "pip install --no-build-isolation '.[export]' (in the checkout)\n"
    assert err == f'error: runner onnxruntime needs onnx and onnxruntime: {remedy}'
    assert not list(tmp_path.iterdir())


def sabotage_forward(y):
    return torch.cat(y.chunk(2, dim=1)[::-1], dim=1)  # crossed the wrong way round


def sabotage_gradient(y):
    y = y.clone()
    if y.requires_grad:
        y.register_hook(lambda grad: 1.05 * grad)
    return y


@pytest.mark.parametrize(
    ('sabotage', 'mode', 'part'),
    [
        (sabotage_forward, 'forward', 'output'),
        (sabotage_forward, 'train', 'output'),
        (sabotage_gradient, 'train', 'gradient of input'),
    ],
)
def test_wrong_backend_is_refused_and_nothing_reported(sabotage, mode, part, monkeypatch, tool, tmp_path):
    good = ops.sru

    def bad(*arguments, backend):
        y = good(*arguments, backend=backend)
        return y if backend == 'plain' else sabotage(y)

    monkeypatch.setattr(ops, 'sru', bad)
    status, out, err = tool('benchmark', *TINY_LAYER, '--norm', '--modes', mode, '--out', tmp_path)
    assert status == 2
    assert err.startswith('error: scconv in eager, fp32, ')
    assert 'differs from the plain form, so nothing is timed' in err
    assert part in err
    assert err.count('\n') == 1
    assert '## ' not in out and not list(tmp_path.iterdir())


def test_one_wrong_layer_in_a_network_is_refused(monkeypatch):
    """Also by the comparison of the whole network, which is all that a compiled or exported one gets."""
    model = BackboneSubject(18, {}, base_channels=16, stem_channels=16).build(CANDIDATES['scconv'], CPU)
    x = torch.randn(2, 3, 64, 64)
    job = Job(model, x, torch.float32, False)
    reference = reference_of(model, job)
    check_network(job, reference, 'scconv')
    model.layer3[0].conv2.cru.pwc1.weight.data.mul_(1.5)
    with pytest.raises(UserError, match='scconv differs from the plain form'):
        check_network(job, reference, 'scconv')


def deep_network(layers=24):
    """SCConvs alone, in which the flips of one change the input of all behind it."""
    torch.manual_seed(0)
    return nn.Sequential(*(SCConv(16, 16, 3, padding=1) for _ in range(layers))).eval()


def shifted(gates):
    """A fault of the gate alone: its threshold lies elsewhere."""
    for module in gates.modules():
        if isinstance(module, SRU):
            module.threshold = 0.52


def test_flips_are_told_from_faults():
    model, x = deep_network(), torch.randn(2, 16, 12, 12)
    job = Job(copy.deepcopy(model), x, torch.float32, False)
    reference = Job(copy.deepcopy(model), x + 1e-5 * torch.randn(x.shape), torch.float32, False)
    check_flips(job, reference, 'scconv')
    shifted(job.model)
    with pytest.raises(UserError, match=r'of the decisions of 0\.sru are others'):
        check_flips(job, reference, 'scconv')


def test_shut_gates_leave_nothing_to_flip():
    shut, x = with_shut_gates(deep_network()), torch.randn(2, 16, 12, 12)
    assert not any(m.informative(m.logit(x)).any() for m in shut.modules() if isinstance(m, SRU))


def test_a_network_whose_gates_flip_is_timed_and_a_fault_is_not(monkeypatch, tool, tmp_path):
    """The first comparison is made to fail, as by flips; the second one decides."""
    calls = []

    def refuse_first(job, reference, what):
        calls.append(what)
        if len(calls) == 1:
            raise DiffersError('flipped')
        check_network(job, reference, what)

    monkeypatch.setattr('mmscconv.benchmark.session.check_network', refuse_first)
    status, _, err = tool('benchmark', *TINY_LAYER, '--out', tmp_path)
    assert status == 0, err
    assert 'all gates shut' in calls[1]

    calls.clear()
    good = ops.fuse
    monkeypatch.setattr(ops, 'fuse', lambda *args, backend, **kwargs: good(*args, backend=backend, **kwargs) * 1.2)
    monkeypatch.setattr('mmscconv.benchmark.session.check_layers', lambda *args: None)
    status, _, err = tool('benchmark', *TINY_LAYER, '--out', tmp_path)
    assert status == 2 and 'all gates shut' in err


def test_results_that_are_not_numbers_are_refused():
    job = Job(nn.Identity(), torch.full((1, 1, 2, 2), math.nan), torch.float32, False)
    with pytest.raises(UserError, match='nan off'):
        check_network(job, job, 'scconv')


def test_interrupted_run_keeps_its_rounds(tool, tmp_path, monkeypatch):
    from mmscconv.benchmark.reporting import Report

    def interrupted(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Report, 'add_setting', interrupted)
    with pytest.raises(KeyboardInterrupt):
        tool('benchmark', *TINY_LAYER, '--out', tmp_path)
    assert len(rows_of(tmp_path / 'layer.csv')) == 4


def test_a_run_without_a_figure_leaves_an_earlier_one(tool, tmp_path):
    files = [tmp_path / f'layer.{suffix}' for suffix in ('csv', 'md', 'png')]
    for file in files:
        file.write_text('of before')
    status, _, err = tool('benchmark', *TINY_LAYER, '--channels', 15, '--out', tmp_path)
    assert status == 2 and 'SRU halves its channels' in err
    assert sorted(tmp_path.iterdir()) == files and {file.read_text() for file in files} == {'of before'}


def test_training_keeps_the_weights():
    subject = LayerSubject(16, 2, True, {})
    plan = Plan(['conv', 'scconv'], 2, 1, 1, CPU)
    jobs = []

    def remember(competitors, number):
        jobs[:] = [competitor.run.__self__ for competitor in competitors]

    measure(subject, setting(mode='train'), plan, remember)
    for job, name in zip(jobs, plan.candidates, strict=True):
        fresh = subject.build(CANDIDATES[name], CPU)
        assert all(torch.equal(p, q) for p, q in zip(job.model.parameters(), fresh.parameters(), strict=True))
        assert all(p.grad is None for p in job.model.parameters())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--sizes', '0'], 'must be a size such as 224 or 800x1344, got 0'),
        (['--rounds', '0'], 'must be positive, got 0'),
        (['--candidates', 'conv', 'conv'], '--candidates names one twice: conv conv'),
        (['--runners', 'eager+deploy', '--modes', 'train'], 'nothing is left to measure: eager+deploy, fp32, train'),
        (
            ['--runners', 'onnxruntime', '--memory-formats', 'nchw', '--profile', '1'],
            "--profile sees PyTorch's operators",
        ),
        (['--device', 'cuda:77'], '--device cuda:77 cannot be used here'),
        (['--channels', '15'], 'SRU halves its channels'),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tool, tmp_path):
    status, _, err = tool('benchmark', *TINY_LAYER, '--out', tmp_path, *arguments)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert 'Traceback' not in err


def test_threads_are_used_and_given_back(tool, tmp_path):
    before = torch.get_num_threads()
    tool('benchmark', *TINY_LAYER, '--threads', before + 1, '--out', tmp_path)
    assert f'{before + 1} threads used' in (tmp_path / 'layer.md').read_text()
    assert torch.get_num_threads() == before


def test_output_that_cannot_be_written_is_one_line(tool, tmp_path):
    (tmp_path / 'file').write_text('')
    status, _, err = tool('benchmark', *TINY_LAYER, '--out', tmp_path / 'file' / 'below')
    assert status == 2
    assert err.startswith('error: cannot write to ')
