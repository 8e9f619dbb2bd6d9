"""mmscconv::SCConv in ONNX Runtime beside the layer in float64, on other batches and sizes than it was traced at."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from helpers.side_by_side import SideBySide, name_of, require_agreement
from helpers.trained import relative, trained
from mmscconv import SCConv
from mmscconv.errors import UserError
from mmscconv.export import custom_op
from mmscconv.export.onnx_file import export_onnx
from mmscconv.models import SCConvResNet, switch_to_deploy
from mmscconv.ops import compiled

onnx = pytest.importorskip('onnx', reason="onnx is not installed: pip install '.[export]'")
onnxruntime = pytest.importorskip('onnxruntime', reason="it is not installed: pip install '.[export]'")
pytestmark = pytest.mark.skipif(
    isinstance(compiled.build(compiled.ONNXRUNTIME_OP), str), reason=str(compiled.build(compiled.ONNXRUNTIME_OP))
)

AXES = {0: 'batch', 2: 'height', 3: 'width'}
SETTINGS = [
    {},
    {'stride': 2},
    {'stride': (2, 1)},
    {'kernel_size': 5, 'stride': 2, 'padding': 2},
    {'kernel_size': (1, 5), 'padding': (0, 2), 'gwc_groups': 4},
    {'kernel_size': 4, 'padding': 'same', 'inner_norm': True},
    {'kernel_size': 2, 'padding': 'same', 'dilation': 3},
    {'inner_norm': True, 'stride': 2},
    {'alpha': 0.75, 'dilation': 2, 'padding': 2},
    {'alpha': 0.25, 'squeeze_ratio': 1, 'inner_norm': True},
    {'gate': 'hard', 'threshold': 0.48},
    {'threshold': 0.0},
    {'bias': True},
]


def layer(channels=(16, 24), norm=True, **settings):
    conv = SCConv(*channels, **{'kernel_size': 3, 'padding': 1, 'num_groups': 4, **settings})
    return trained(nn.Sequential(conv, nn.BatchNorm2d(channels[1])) if norm else nn.Sequential(conv))


def exported(model, file, x=None, **settings):
    """Write the deploy form of ``model``; return the number of the op's nodes."""
    network, number = custom_op.with_custom_op(switch_to_deploy(copy.deepcopy(model)))
    x = torch.randn(2, 16, 8, 8) if x is None else x
    export_onnx(network, (x,), file, ['x'], **settings)
    return number


def session_of(file, threads=2, **names):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(custom_op.library()))
    for name, size in names.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])


def run(session, x):
    return torch.from_numpy(session.run(None, {'x': x.numpy()})[0])


@pytest.fixture(scope='module', params=[True, False], ids=['norm', 'no norm'])
def answers(request, tmp_path_factory):
    """A layer of each setting by its name, and inputs with the outputs of one session, in the order of the layers."""
    torch.manual_seed(0)
    models = {name_of(settings): layer(norm=request.param, **settings) for settings in SETTINGS}
    file = tmp_path_factory.mktemp('layers') / 'm.onnx'
    network = SideBySide(models.values()).eval()
    assert exported(network, file, output_names=list(models), dynamic_axes={'x': AXES}) == len(models)
    session = session_of(file)
    inputs = [torch.randn(shape) for shape in ((2, 16, 8, 8), (1, 16, 13, 7), (3, 16, 5, 31), (1, 16, 40, 40))]
    return models, [(x, session.run(list(models), {'x': x.numpy()})) for x in inputs]


@pytest.mark.parametrize('name', map(name_of, SETTINGS))
def test_layer(name, answers):
    models, answered = answers
    for x, outputs in answered:
        require_agreement(models[name], x, torch.from_numpy(outputs[list(models).index(name)]))


@pytest.mark.parametrize('channels', [(64, 64), (34, 66), (128, 40)], ids=str)
def test_channels_that_fill_panels_and_that_do_not(channels, tmp_path):
    model = layer(channels, num_groups=2)
    x = torch.randn(2, channels[0], 9, 11)
    assert exported(model, tmp_path / 'm.onnx', x) == 1
    with torch.no_grad():
        wanted = model.double()(x.double())
    got = run(session_of(tmp_path / 'm.onnx'), x)
    assert relative(got, wanted) < 1e-5


def test_empty_batch(tmp_path):
    exported(layer(stride=2), tmp_path / 'm.onnx', dynamic_axes={'x': AXES})
    assert run(session_of(tmp_path / 'm.onnx'), torch.zeros(0, 16, 9, 8)).shape == (0, 24, 5, 4)


def test_same_bits_with_any_number_of_threads(tmp_path):
    exported(layer(), tmp_path / 'm.onnx', dynamic_axes={'x': AXES})
    x = torch.randn(5, 16, 33, 29)
    results = [run(session_of(tmp_path / 'm.onnx', threads), x) for threads in (1, 2, 5)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_sessions_at_the_same_time_do_not_disturb_each_other(tmp_path):
    exported(layer(), tmp_path / 'm.onnx', dynamic_axes={'x': AXES})
    sessions = [session_of(tmp_path / 'm.onnx', threads) for threads in (1, 2, 3)]
    inputs = [torch.randn(n, 16, 21, 17) for n in (1, 2, 5, 8)]
    wanted = [run(sessions[0], x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        jobs = [(pool.submit(run, session, x), y) for _ in range(20) for session in sessions
                for x, y in zip(inputs, wanted, strict=True)]  # fmt: skip
        assert all(torch.equal(job.result(), y) for job, y in jobs)


def test_loops_run_on_the_threads_of_onnx_runtime():
    assert b'libgomp' not in custom_op.library().read_bytes()


def test_network(tmp_path):
    model = trained(SCConvResNet(depth=50, base_channels=16, stem_channels=16))
    x = torch.randn(2, 3, 64, 96)
    outputs = ['a', 'b', 'c', 'd']
    axes = {'x': AXES, **dict.fromkeys(outputs, AXES)}
    assert exported(model, tmp_path / 'm.onnx', x, output_names=outputs, dynamic_axes=axes) == 16
    session = session_of(tmp_path / 'm.onnx')
    for size in ((2, 3, 64, 96), (1, 3, 96, 70)):
        x = torch.randn(size)
        got = session.run(None, {'x': x.numpy()})
        with torch.no_grad():
            wanted = model.double()(x.double())
        for g, w in zip(got, wanted, strict=True):
            assert np.linalg.norm(g - w.numpy()) < 1e-3 * w.norm()  # a gate may decide otherwise


def test_what_the_op_cannot_compute_keeps_its_plain_form(tmp_path):
    layers = [dict(arrangement='C'), {}, dict(alpha=1), dict(arrangement='C+S'), dict(padding=0)]
    model = nn.Sequential(*(layer((16, 16), **settings) for settings in layers))
    assert exported(model, tmp_path / 'm.onnx') == 1
    nodes = onnx.load(tmp_path / 'm.onnx').graph.node
    assert [n.domain for n in nodes if n.op_type == 'SCConv'] == ['mmscconv']
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        wanted = model.double()(x.double())
    got = run(session_of(tmp_path / 'm.onnx'), x)
    assert relative(got, wanted) < 1e-4


def test_training_form_has_no_node():
    assert custom_op.with_custom_op(layer())[1] == 0


def node_alone(file, shape, channels=(16, 24), edit=lambda model: None, **settings):
    """Write the op without the transpositions around it, its input of ``shape``; sizes in it may be names."""
    exported(layer(channels, **settings), file, torch.randn(1, channels[0], 8, 8))
    model = onnx.load(file)
    node = next(n for n in model.graph.node if n.op_type == 'SCConv')
    others = [n for n in model.graph.node if n.op_type == 'Constant']
    node.input[0], node.output[0] = 'x', 'y'
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, shape)
    graph = onnx.helper.make_graph([*others, node], 'g', [value], [onnx.helper.make_empty_tensor_value_info('y')])
    model = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    edit(model)
    onnx.save(model, file)


@pytest.mark.parametrize(
    ('shape', 'stride', 'wanted'),
    [
        ((2, 9, 8, 16), 1, [2, 9, 8, 24]),
        ((2, 9, 8, 16), (1, 2), [2, 9, 4, 24]),
        (('n', 'h', 'w', 16), 1, ['n', 'h', 'w', 24]),
        (('n', 'h', 8, 16), 2, ['n', 'ceil(h/2)', 4, 24]),
    ],
    ids=str,
)
def test_shape_is_known_before_anything_runs(shape, stride, wanted, tmp_path):
    node_alone(tmp_path / 'm.onnx', shape, stride=stride)
    assert session_of(tmp_path / 'm.onnx').get_outputs()[0].shape == wanted


def test_shape_without_names_is_left_open(tmp_path):
    node_alone(tmp_path / 'm.onnx', (1, None, None, 16), stride=2)
    session = session_of(tmp_path / 'm.onnx')
    assert session.run(None, {'x': np.zeros((1, 9, 8, 16), np.float32)})[0].shape == (1, 5, 4, 24)


@pytest.mark.parametrize('shape', [(1, 8, 8, 20), (1, 8, 8, 8), (1, 8, 8, 18)], ids=str)
def test_other_channels_are_refused(shape, tmp_path):
    node_alone(tmp_path / 'm.onnx', ('n', 'h', 'w', 'c'))
    with pytest.raises(
        Exception, match=r'mmscconv::SCConv: (X must be|scale has 16 values, X of 20 channels needs 20)'
    ):
        session_of(tmp_path / 'm.onnx').run(None, {'x': np.zeros(shape, np.float32)})


def test_another_rank_is_refused(tmp_path):
    node_alone(tmp_path / 'm.onnx', None)
    with pytest.raises(Exception, match=r'mmscconv::SCConv: X must be \(N, H, W, C\)'):
        session_of(tmp_path / 'm.onnx').run(None, {'x': np.zeros((8, 8, 16), np.float32)})


def shorten_weights(model):
    value = model.graph.node[4].attribute[0].t
    value.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(value)[:, 1:].copy()))


def test_weights_of_another_size_are_refused(tmp_path):
    node_alone(tmp_path / 'm.onnx', (1, 8, 8, 16), edit=shorten_weights)
    with pytest.raises(Exception, match=r'mmscconv::SCConv: transform has .* values, X of 16 channels needs'):
        session_of(tmp_path / 'm.onnx').run(None, {'x': np.zeros((1, 8, 8, 16), np.float32)})


@pytest.mark.parametrize(('name', 'value'), [('panel', 16), ('groups', 0), ('centre', 9), ('num_groups', -1)])
def test_attributes_of_another_version_are_refused(name, value, tmp_path):
    def edit(model):
        next(a for a in model.graph.node[-1].attribute if a.name == name).i = value

    node_alone(tmp_path / 'm.onnx', (1, 8, 8, 16), edit=edit)
    with pytest.raises(Exception, match='mmscconv::SCConv: this library does not know a node with such attributes'):
        session_of(tmp_path / 'm.onnx')


def test_missing_compiler_is_one_line(monkeypatch):
    compiled.build.cache_clear()
    monkeypatch.setenv('CC', 'false')
    try:
        with pytest.raises(UserError, match=r'the library of mmscconv::SCConv cannot be compiled .*: .*false failed'):
            custom_op.library()
    finally:
        compiled.build.cache_clear()
