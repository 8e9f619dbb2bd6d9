"""Exported files beside PyTorch: other batches and sizes than they were traced at, and what is refused."""

import copy
import importlib.util
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from helpers.exportable import CLASSIFIER, CONFIGS, DETECTOR, SHALLOW, altered_outputs, build
from helpers.trained import relative
from mmscconv.errors import UserError
from mmscconv.export import installed, int8, writing
from mmscconv.export import job as jobs
from mmscconv.export.agreement import matched
from mmscconv.export.formats import FORMATS
from mmscconv.export.graphs import Graph, graph_of
from mmscconv.export.onnx_file import open_session
from mmscconv.export.postprocess import PostProcess
from mmscconv.export.writing import least_size, write_program
from mmscconv.ops.compiled import ONNXRUNTIME_OP
from mmscconv.ops.compiled import build as build_library

pytest.importorskip('onnxruntime', reason="ONNX Runtime is not installed: pip install '.[export]'")


LIBRARY = build_library(ONNXRUNTIME_OP)
needs_gcc = pytest.mark.skipif(isinstance(LIBRARY, str), reason=str(LIBRARY))


def run_session(file, **inputs):
    return list(map(torch.from_numpy, open_session(file).run(None, {k: v.numpy() for k, v in inputs.items()})))


def test_detector_runs_at_other_batches_and_sizes_and_can_be_decoded(detector, digits, tool, tmp_path):
    model, checkpoint = detector
    status, text, error = tool('export', DETECTOR, checkpoint, '--out', tmp_path / 'd.onnx', '--data-root', digits)
    assert status == 0, error[-2000:]
    assert 'outputs: cls_score_0, cls_score_1, cls_score_2, bbox_pred_0, bbox_pred_1, bbox_pred_2' in text
    assert [p.name for p in tmp_path.iterdir()] == ['d.onnx']
    for size in ((3, 3, 96, 64), (1, 3, 192, 256)):
        image = torch.randn(size)
        got = run_session(tmp_path / 'd.onnx', image=image)
        with torch.no_grad():
            features = model.extract_feat(image)
            want = [level for kind in model.bbox_head(features) for level in kind]
            assert max(map(relative, got, want)) < 5e-3
            metas = [dict(img_shape=tuple(size[2:]))] * size[0]
            cfg = Config(dict(model.test_cfg, score_thr=0.0))
            decoded = model.bbox_head.predict_by_feat(got[:3], got[3:], batch_img_metas=metas, cfg=cfg)
            own = model.bbox_head.predict_by_feat(want[:3], want[3:], batch_img_metas=metas, cfg=cfg)
        assert len(decoded) == size[0]
        assert all(len(d) == 100 for d in decoded)
        torch.testing.assert_close(decoded[0].scores, own[0].scores, rtol=0, atol=5e-3)


def test_what_the_file_says_is_enough_to_prepare_an_image(detector, digits, tool, tmp_path):
    _, checkpoint = detector
    out = tmp_path / 'd.onnx'
    assert tool('export', DETECTOR, checkpoint, '--out', out, '--data-root', digits, '--deploy')[0] == 0
    meta = {k: json.loads(v) for k, v in open_session(out).get_modelmeta().custom_metadata_map.items()}
    assert (meta['task'], meta['form'], meta['classes']) == ('detection', 'deploy', list('0123456789'))
    model, _ = detector
    image = cv2.imread(str(next((digits / 'val').glob('*.png'))))[:70, :100]
    want = model.data_preprocessor(
        {'inputs': [torch.from_numpy(image.transpose(2, 0, 1).copy())], 'data_samples': None}, False
    )['inputs']
    pixels = image[..., ::-1] if meta['channel_order'] == 'RGB' else image
    pixels = (pixels - np.array(meta['mean'])) / np.array(meta['std'])
    below, right = (-s % meta['size_divisor'] for s in pixels.shape[:2])
    filled = dict(constant_values=meta['pad_value'])
    got = np.pad(pixels, ((0, below), (0, right), (0, 0)), **filled).transpose(2, 0, 1)[None]
    torch.testing.assert_close(torch.from_numpy(got).float(), want)


@pytest.mark.parametrize('score_thr', [0.0, 0.9999], ids=['detections', 'none'])
def test_post_processing_in_onnx_is_that_of_mmdet(score_thr, detector, digits, tool, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'd.onnx'
    status, text, error = tool(
        'export', DETECTOR, checkpoint, '--out', out, '--data-root', digits, '--postprocess',
        '--cfg-options', f'model.test_cfg.score_thr={score_thr}',
    )  # fmt: skip
    assert status == 0, error[-2000:]
    assert ('of 400 detections alike' in text) == (not score_thr)
    assert ('neither finds anything, so nothing was compared' in text) == bool(score_thr)
    shape = torch.tensor([[90.0, 64.0], [50.0, 60.0], [96.0, 33.0]])
    image = torch.randn(3, 3, 96, 64)
    got = run_session(out, image=image, shape=shape)
    assert [tuple(t.shape) for t in got] == [(3, 100, 4), (3, 100), (3, 100)]
    if score_thr:
        assert (got[2] == -1).all()
        return
    model.bbox_head.test_cfg.score_thr = score_thr
    with torch.no_grad():
        share, found = matched(model, (image, shape), got)
    assert found == 300
    assert share > 0.99
    assert (got[0][1, :, 2].max(), got[0][1, :, 3].max()) == (60, 50)


@pytest.mark.parametrize(
    'settings', [{}, {'min_bbox_size': 40}, {'nms_pre': 7, 'max_per_img': 5}, {'score_thr': 0.6}], ids=str
)
def test_post_processing_in_pytorch_is_that_of_mmdet(settings, detector):
    model, _ = detector
    head = model.bbox_head
    cfg = Config(dict(model.test_cfg, **{'score_thr': 0.3, **settings}))
    sizes = [(12, 10), (6, 5), (3, 3)]
    scores = [torch.randn(2, 9 * 10, *s) for s in sizes]
    deltas = [0.5 * torch.randn(2, 9 * 4, *s) for s in sizes]
    shapes = torch.tensor([[96.0, 80.0], [60.0, 70.0]])
    metas = [dict(img_shape=tuple(map(int, s))) for s in shapes]
    want = head.predict_by_feat(scores, deltas, batch_img_metas=metas, cfg=cfg)
    got = PostProcess(head, cfg)(scores, deltas, shapes)
    for i, theirs in enumerate(want):
        there = got[2][i] >= 0
        ours = InstanceData(bboxes=got[0][i][there], scores=got[1][i][there], labels=got[2][i][there])
        assert len(theirs) > 0
        torch.testing.assert_close(ours.scores, theirs.scores)
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-5, atol=1e-3)
        assert torch.equal(ours.labels, theirs.labels)


def test_torch_export_runs_at_other_batches_and_sizes(classifier, tool, tmp_path):
    model, checkpoint, data = classifier
    out = tmp_path / 'c.pt2'
    status, text, error = tool('export', CLASSIFIER, checkpoint, '--out', out, '--data-root', data, *SHALLOW)
    assert status == 0, error[-2000:]
    assert 'compared with PyTorch on 4 x 32 x 32: largest difference' in text
    assert 'on 1 x 64 x 96: ' in text
    meta = {'metadata.json': ''}
    program = torch.export.load(out, extra_files=meta).module()
    sizes = {key: json.loads(json.loads(meta['metadata.json'])[key]) for key in ('size_divisor', 'least_size')}
    assert sizes == {'size_divisor': 32, 'least_size': 32}
    for size in ((1, 3, 32, 32), (3, 3, 96, 64)):
        image = torch.randn(size)
        with torch.no_grad():
            assert relative(program(image)[0], model(image, mode='tensor')) < 5e-3


@pytest.mark.parametrize(('coarsest', 'least'), [(32, 64), (64, 96), (128, 160)])
def test_the_least_size_of_a_detector_gives_two_places_at_the_coarsest_level(coarsest, least):
    assert least_size(Graph(None, {}, coarsest=coarsest), torch.zeros(1, 3, 32, 32)) == least
    assert -(-least // coarsest) > 1 >= -(-(least - 32) // coarsest)


def test_each_format_has_its_functions_and_an_extra_that_is_known():
    assert writing.FUNCTIONS.keys() == FORMATS.keys()
    assert {format.extra for format in FORMATS.values() if format.extra} <= installed.PACKAGES.keys()
    assert len({format.suffix for format in FORMATS.values()}) == len(FORMATS)


FCOS = """
_base_ = {base!r}
head = dict(norm_cfg=dict(type='GN', num_groups=4), strides=[8, 16, 32], regress_ranges=((-1, 32), (32, 64), (64, 1e8)))
model = dict(
    type='FCOS',
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(
        _delete_=True, type='FCOSHead', num_classes=10, in_channels=16, feat_channels=16, stacked_convs=1, **head
    ),
)
"""


def test_fcos_has_centerness_as_the_third_kind(digits, tool, tmp_path):
    config, checkpoint, out = (tmp_path / name for name in ('fcos.py', 'fcos.pth', 'fcos.onnx'))
    config.write_text(FCOS.format(base=str(DETECTOR)))
    model = build(config, checkpoint)
    status, text, error = tool('export', config, checkpoint, '--out', out, '--data-root', digits)
    assert status == 0, error[-2000:]
    kinds = ['cls_score', 'bbox_pred', 'score_factor']
    assert f'outputs: {", ".join(f"{kind}_{level}" for kind in kinds for level in range(3))}' in text
    image = torch.randn(2, 3, 96, 160)
    got = run_session(out, image=image)
    got = [got[i : i + 3] for i in range(0, len(got), 3)]  # as docs/export.md takes them apart
    with torch.no_grad():
        want = model.bbox_head(model.extract_feat(image))
        for ours, theirs, channels in zip(got, want, (10, 4, 1), strict=True):
            assert [level.shape[1] for level in ours] == 3 * [channels]
            assert max(map(relative, ours, theirs)) < 5e-3
        metas = [dict(img_shape=(96, 160))] * 2
        cfg = Config(dict(model.test_cfg, score_thr=0.0))
        decoded, own = (model.bbox_head.predict_by_feat(*maps, batch_img_metas=metas, cfg=cfg) for maps in (got, want))
    torch.testing.assert_close(decoded[1].scores, own[1].scores, rtol=0, atol=5e-3)


def test_a_program_of_a_detector_takes_images_from_its_least_size_on(tmp_path):
    """With a plain backbone, which torch.export is done with in a few seconds."""
    (tmp_path / 'fcos.py').write_text(FCOS.format(base=str(CONFIGS / 'retinanet_r18_digits.py')))
    graph = graph_of(build(tmp_path / 'fcos.py', tmp_path / 'fcos.pth'), False)
    write_program(graph, torch.randn(1, 3, 128, 128), {}, tmp_path / 'fcos.pt2')
    meta = {'metadata.json': ''}
    program = torch.export.load(tmp_path / 'fcos.pt2', extra_files=meta).module()
    least = json.loads(json.loads(meta['metadata.json'])['least_size'])
    assert least == 64
    for size in ((1, 3, least, least), (3, 3, 96, least)):
        image = torch.randn(size)
        with torch.no_grad():
            assert max(map(relative, program(image), graph.network(image))) < 5e-3
    with pytest.raises(Exception, match=str(least)):
        program(torch.randn(1, 3, least - 32, least))


@pytest.mark.parametrize('scope', ['gate-fp32', 'all', 'conv'])
def test_int8_tells_what_it_costs(scope, classifier, tool, tmp_path):
    model, checkpoint, data = classifier
    out = tmp_path / 'c.onnx'
    status, text, error = tool(
        'export', CLASSIFIER, checkpoint, '--out', out, '--data-root', data, '--int8', scope, '--num-images', 16,
        '--calibration', 4, *SHALLOW,
    )  # fmt: skip
    assert status == 0, error[-2000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['c.int8.onnx', 'c.onnx']
    assert 'calibrated on 4 images, compared on 12 others' in text
    import onnx

    graph = onnx.load(tmp_path / 'c.int8.onnx').graph
    made_by = {out: node for node in graph.node for out in node.output}
    fed = {
        (n.op_type, '/sru/' in n.name)
        for n in graph.node
        if any(made_by.get(i) and made_by[i].op_type == 'DequantizeLinear' for i in n.input[:1])
    }
    assert ('Conv', False) in fed
    assert ('Sigmoid', True) in {(n.op_type, '/sru/' in n.name) for n in graph.node}
    assert (('Sigmoid', True) in fed) == (scope == 'all')
    assert (('Sigmoid', False) in fed) == (scope != 'conv')  # the CRU's weights of its branches
    images, labels = [], []
    for path in sorted((data / 'test').glob('*/*.png')):
        images.append(torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1).copy()))
        labels.append(int(path.parent.name))
    chosen = np.linspace(0, 15, 4).astype(int)
    rest = [i for i in range(16) if i not in chosen]
    x = model.data_preprocessor({'inputs': images, 'data_samples': None}, False)['inputs'][rest]
    labels = torch.tensor(labels)[rest]
    plain, quantized = (run_session(tmp_path / f, image=x)[0] for f in ('c.onnx', 'c.int8.onnx'))
    top1 = [100 * (t.argmax(1) == labels).float().mean().item() for t in (plain, quantized)]
    assert 'top-1: fp32 {:.2f} %, INT8 {:.2f} %'.format(*top1) in text
    assert f'same class: {100 * (plain.argmax(1) == quantized.argmax(1)).float().mean():.2f} %' in text
    assert 0 < (plain - quantized).abs().mean() < plain.abs().mean()


def test_a_file_that_differs_is_not_kept(classifier, tool, tmp_path, monkeypatch):
    _, checkpoint, data = classifier
    altered_outputs(monkeypatch, 'onnx')
    (tmp_path / 'c.onnx').write_text('of before')
    status, _, error = tool(
        'export', CLASSIFIER, checkpoint, '--out', tmp_path / 'c.onnx', '--data-root', data, *SHALLOW
    )
    assert status == 2
    assert 'c.onnx is not kept: on 4 x 32 x 32 logits is 1.0e-02 off in relative L2 norm, 5e-03 is allowed' in error
    assert [p.read_text() for p in tmp_path.iterdir()] == ['of before']


BAD = {
    'suffix': (
        [DETECTOR, 'x.pth', '--out', 'a.txt'],
        '--out must end with .onnx, .pt2, .xml, .param, or pass --format: a.txt',
    ),
    'folder': ([DETECTOR, 'x.pth', '--out', 'no/a.onnx'], 'folder of --out is not there: no'),
    'postprocess': ([CLASSIFIER, 'x.pth', '--out', 'a.onnx', '--postprocess'], '--postprocess is for detectors'),
    'int8': ([DETECTOR, 'x.pth', '--out', 'a.onnx', '--int8'], '--int8 is for classifiers'),
    'custom op, training form': ([DETECTOR, 'x.pth', '--out', 'a.onnx', '--custom-op'], 'pass --deploy as well'),
    'custom op, pt2': (
        [DETECTOR, 'x.pth', '--out', 'a.pt2', '--deploy', '--custom-op'],
        '--custom-op writes .onnx, not .pt2',
    ),
    'custom op, same file': (
        [DETECTOR, 'x.pth', '--out', 'a.so', '--format', 'onnx', '--deploy', '--custom-op'],
        '--out needs another suffix',
    ),
    'custom op, int8': (
        [CLASSIFIER, 'x.pth', '--out', 'a.onnx', '--deploy', '--custom-op', '--int8'],
        '--int8 cannot quantize it',
    ),
    'pt2': ([DETECTOR, 'x.pth', '--out', 'a.pt2', '--postprocess'], '--postprocess writes .onnx, .xml, not .pt2'),
    'size': (
        [DETECTOR, 'x.pth', '--out', 'a.onnx', '--size', '12'],
        '--size must be HxW, for example 800x1344, got 12',
    ),
    'checkpoint': ([DETECTOR, 'x.pth', '--out', 'a.onnx'], 'checkpoint is not there: x.pth'),
    'config': (['no.py', 'x.pth', '--out', 'a.onnx'], 'config is not there: no.py'),
    'number': ([DETECTOR, 'x.pth', '--out', 'a.onnx', '--num-images', '0'], 'must be positive'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_arguments_end_in_one_line(case, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = BAD[case]
    status, _, error = tool('export', *args)
    assert status == 2
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


BAD_IMAGES = {
    'none': ([], 'no images for the check: pass --images FOLDER, or mend this: data folder for test is not there'),
    'missing': (['--images', 'no'], '--images: not there: no'),
    'empty': (['--images', 'empty'], '--images: no image ('),
    'unreadable': (['--images', 'broken.png'], 'cannot load broken.png: '),
    'size': (['--images', 'good.png', '--size', '40x64'], '--size 40x64: both must be multiples of 32'),
    'other model': (
        ['--images', 'good.png', '--cfg-options', 'model.backbone.depth=34'],
        'checkpoint is not of this model',
    ),
}


@pytest.mark.parametrize('case', BAD_IMAGES)
def test_bad_images_end_in_one_line(case, detector, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'broken.png').write_text('no image')
    cv2.imwrite('good.png', np.zeros((64, 64, 3), np.uint8))
    args, message = BAD_IMAGES[case]
    status, _, error = tool('export', DETECTOR, detector[1], '--out', 'a.onnx', *args)
    assert status == 2
    assert message in error.splitlines()[-1]
    assert not list(tmp_path.glob('*.onnx'))


@pytest.mark.parametrize(
    ('model', 'size', 'message'),
    [
        (CLASSIFIER, '40x64', 'multiples of 32, 32 or more, got 40x64: pass --size 64x64'),
        (DETECTOR, '32x96', 'multiples of 32, 64 or more, got 32x96: pass --size 64x96'),
    ],
    ids=['classifier', 'detector'],
)
def test_sizes_that_a_program_does_not_take_are_told_first(
    model, size, message, classifier, detector, digits, tool, tmp_path
):
    checkpoint, data, options = (detector[1], digits, []) if model is DETECTOR else (*classifier[1:], SHALLOW)
    args = [model, checkpoint, '--out', tmp_path / 'a.pt2', '--data-root', data, '--size', size]
    status, _, error = tool('export', *args, *options)
    assert status == 2 and message in error.splitlines()[-1]
    assert not [*tmp_path.iterdir()]


def test_weights_that_are_not_finite_are_refused(detector, digits, tool, tmp_path):
    """They detect nothing, in PyTorch and in the file alike."""
    content = torch.load(detector[1], weights_only=False)
    content['state_dict']['bbox_head.retina_cls.weight'][0] = float('nan')
    torch.save(content, checkpoint := tmp_path / 'nan.pth')
    args = [DETECTOR, checkpoint, '--out', tmp_path / 'd.onnx', '--data-root', digits, '--postprocess']
    status, _, error = tool('export', *args)
    assert status == 2 and 'weights that are not finite' in error.splitlines()[-1] and 'nan.pth' in error
    assert [*tmp_path.iterdir()] == [checkpoint]


@pytest.mark.parametrize(
    ('folders', 'message'),
    [
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], 'each label would mean another class'),
        ([*range(10), 99], "model.head.num_classes is 10, but the config's test data has 11 classes"),
    ],
    ids=['one less', 'one more'],
)
def test_labels_are_those_of_the_checkpoint(folders, message, classifier, tool, tmp_path):
    """mmpretrain numbers the folders that are there; INT8's top-1 would be of other classes."""
    _, checkpoint, data = classifier
    for label in folders:
        source = data / 'test' / str(min(label, 9))
        (tmp_path / 'data' / 'test' / str(label)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, tmp_path / 'data' / 'test' / str(label))
    (tmp_path / 'out').mkdir()
    args = [CLASSIFIER, checkpoint, '--out', tmp_path / 'out' / 'c.onnx', '--data-root', tmp_path / 'data']
    status, _, error = tool('export', *args, '--int8', '--num-images', 9, '--calibration', 3, *SHALLOW)
    assert status == 2 and message in error.splitlines()[-1]
    assert not list((tmp_path / 'out').iterdir())


@pytest.mark.parametrize('labels', [[[1, 2], [0]], [[1], [0]], None])
def test_top1_takes_one_label_an_image(labels, monkeypatch, tmp_path):
    from mmpretrain.structures import DataSample

    samples = [DataSample() if labels is None else DataSample().set_gt_label(label) for label in labels or (0, 0)]
    items = [dict(inputs=torch.zeros(3, 2, 2), data_samples=sample) for sample in samples]
    monkeypatch.setattr(int8, 'open_onnx', lambda file: lambda images: [torch.tensor([[0.0, 1, 0], [0, 0, 1]])])
    monkeypatch.setattr(int8, 'preprocess', lambda model, part: (torch.zeros(len(part), 3, 2, 2), None))
    (tmp_path / 'a.onnx').write_text('')
    found = int8.compare(tmp_path / 'a.onnx', tmp_path / 'a.onnx', None, items, 4)
    assert found.top1 == ((50.0, 50.0) if labels == [[1], [0]] else None)
    assert ('top-1 is left out: not every image has exactly one label' in str(found)) == (found.top1 is None)


def test_a_file_names_as_many_classes_as_it_gives(detector, digits, tool, tmp_path):
    content = torch.load(detector[1], weights_only=False)
    content['meta']['dataset_meta']['classes'] = ['a', 'b']
    torch.save(content, checkpoint := tmp_path / 'two.pth')
    status, _, error = tool('export', DETECTOR, checkpoint, '--out', tmp_path / 'd.onnx', '--data-root', digits)
    assert status == 2 and 'model.bbox_head.num_classes is 10, but' in error.splitlines()[-1]
    assert 'two.pth has 2 classes' in error and [*tmp_path.iterdir()] == [checkpoint]


@pytest.mark.parametrize('change', ['more kinds', 'no priors', 'more levels'])
def test_heads_of_other_outputs_are_refused(change, detector):
    """Such as YOLOX's objectness or CenterNet's heat maps: they would get the names of others."""
    model = copy.deepcopy(detector[0]).eval()
    assert next(iter(graph_of(model, False).outputs)) == 'cls_score_0'
    head = model.bbox_head
    forward = head.forward
    if change == 'more kinds':
        head.forward = lambda x: (*forward(x), forward(x)[0])
    elif change == 'more levels':
        head.forward = lambda x: tuple([*maps, maps[-1]] for maps in forward(x))
    else:
        del head.prior_generator
    with pytest.raises(UserError, match=r'RetinaNet with \w+ cannot be exported: its head does not give'):
        graph_of(model, False)


def test_missing_packages_are_named_with_the_way_to_get_them(tmp_path, monkeypatch):
    cfg = Config.fromfile(DETECTOR)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"ONNX needs onnx and onnxruntime: pip install .*'\.\[export\]'"):
        jobs.ExportJob(cfg, 'x.pth', tmp_path / 'a.onnx').prepare()


@needs_gcc
def test_library_of_the_op_lies_beside_the_model(detector, digits, tool, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'd.onnx'
    status, text, error = tool(
        'export', DETECTOR, checkpoint, '--out', out, '--data-root', digits, '--deploy', '--custom-op'
    )
    assert status == 0, error[-2000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d.onnx', 'd.so']
    assert f'{tmp_path / "d.so"}: mmscconv::SCConv, 8 nodes' in text
    session = open_session(out, library=tmp_path / 'd.so')
    assert json.loads(session.get_modelmeta().custom_metadata_map['custom_ops']) == ['mmscconv::SCConv']
    image = torch.randn(1, 3, 160, 96)
    with torch.no_grad():
        wanted = [level for kind in model.bbox_head(model.extract_feat(image)) for level in kind]
    got = list(map(torch.from_numpy, session.run(None, {'image': image.numpy()})))
    assert max(map(relative, got, wanted)) < 5e-3
    with pytest.raises(Exception, match='mmscconv'):
        open_session(out)


@needs_gcc
def test_detections_after_nms_with_the_op(detector, digits, tool, tmp_path):
    _, checkpoint = detector
    status, text, error = tool(
        'export', DETECTOR, checkpoint, '--out', tmp_path / 'd.onnx', '--data-root', digits, '--deploy', '--custom-op',
        '--postprocess', '--cfg-options', 'model.test_cfg.score_thr=0.0',
    )  # fmt: skip
    assert status == 0, error[-2000:]
    assert 'of 400 detections alike' in text


@needs_gcc
def test_classifier_with_the_op(classifier, tool, tmp_path):
    model, checkpoint, data = classifier
    out = tmp_path / 'c.onnx'
    args = [CLASSIFIER, checkpoint, '--out', out, '--data-root', data, '--deploy', '--custom-op']
    status, text, error = tool('export', *args, *SHALLOW)
    assert status == 0, error[-2000:]
    assert 'mmscconv::SCConv, 3 nodes' in text
    image = torch.randn(3, 3, 40, 56)
    got = open_session(out, library=tmp_path / 'c.so').run(None, {'image': image.numpy()})[0]
    with torch.no_grad():
        assert relative(torch.from_numpy(got), model(image, mode='tensor')) < 5e-3


@needs_gcc
def test_model_without_a_layer_for_the_op_is_refused(detector, digits, tool, tmp_path):
    content = torch.load(detector[1], weights_only=False)
    content['state_dict'] = {key: t for key, t in content['state_dict'].items() if '.sru.' not in key}
    torch.save(content, checkpoint := tmp_path / 'c.pth')
    status, _, error = tool(
        'export', DETECTOR, checkpoint, '--out', tmp_path / 'd.onnx', '--data-root', digits, '--deploy', '--custom-op',
        '--cfg-options', 'model.backbone.scconv.arrangement=C',
    )  # fmt: skip
    assert status == 2 and 'the model has no SCConv' in error.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [checkpoint]
