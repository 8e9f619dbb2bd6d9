"""OpenVINO's files beside PyTorch: other batches and sizes than they were traced at, and what is refused."""

import importlib.util
import json
import subprocess
import sys
import types

import pytest
import torch

from helpers.exportable import CLASSIFIER, DETECTOR, SHALLOW, altered_outputs
from helpers.paths import ROOT
from helpers.runtimes import runtime
from helpers.trained import relative
from mmscconv.errors import UserError
from mmscconv.export import openvino_file

pytestmark = runtime('openvino', 'onnx', extra='openvino')


def test_detector_runs_at_other_batches_and_sizes(detector, digits, tool, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'd.xml'
    status, text, error = tool('export', DETECTOR, checkpoint, '--out', out, '--data-root', digits)
    assert status == 0, error[-2000:]
    assert 'compared with PyTorch on 4 x ' in text
    assert 'outputs: cls_score_0, cls_score_1, cls_score_2, bbox_pred_0, bbox_pred_1, bbox_pred_2' in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d.bin', 'd.xml']
    assert f'{tmp_path / "d.bin"} (' in text
    import openvino

    read = openvino.Core().read_model(out)
    assert [put.any_name for put in (*read.inputs, *read.outputs)][:2] == ['image', 'cls_score_0']
    assert json.loads(openvino_file.metadata_of(out)['classes']) == list('0123456789')
    run = openvino_file.open_openvino(out)
    for size in ((3, 3, 96, 64), (1, 3, 192, 256)):
        image = torch.randn(size)
        with torch.no_grad():
            want = [level for kind in model.bbox_head(model.extract_feat(image)) for level in kind]
        assert max(map(relative, run(image), want)) < 5e-3


def test_detections_after_nms(detector, digits, tool, tmp_path):
    status, text, error = tool(
        'export', DETECTOR, detector[1], '--out', tmp_path / 'd.xml', '--data-root', digits, '--deploy',
        '--postprocess', '--cfg-options', 'model.test_cfg.score_thr=0.0',
    )  # fmt: skip
    assert status == 0, error[-2000:]
    assert 'of 400 detections alike' in text


def test_classifier_and_the_precision_that_openvino_chooses(classifier, tool, tmp_path, monkeypatch):
    model, checkpoint, data = classifier
    out = tmp_path / 'c.xml'
    monkeypatch.setattr(openvino_file, 'precision_of', lambda program: 'bf16')
    status, text, error = tool(
        'export', CLASSIFIER, checkpoint, '--out', out, '--data-root', data, '--deploy', *SHALLOW
    )
    assert status == 0, error[-2000:]
    assert 'OpenVINO runs it in bf16 by itself on this machine: largest difference ' in text
    image = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        assert relative(openvino_file.open_openvino(out)(image)[0], model(image, mode='tensor')) < 5e-3


def test_files_that_differ_are_not_kept(classifier, tool, tmp_path, monkeypatch):
    _, checkpoint, data = classifier
    altered_outputs(monkeypatch, 'openvino')
    for name in ('c.xml', 'c.bin'):
        (tmp_path / name).write_text('of before')
    status, _, error = tool(
        'export', CLASSIFIER, checkpoint, '--out', tmp_path / 'c.xml', '--data-root', data, *SHALLOW
    )
    assert status == 2
    assert 'c.xml is not kept: on 4 x 32 x 32 logits is 1.0e-02 off in relative L2 norm, 5e-03 is allowed' in error
    assert [p.read_text() for p in tmp_path.iterdir()] == ['of before'] * 2


BAD = {
    'suffix': (['--out', 'a.onnx', '--format', 'openvino'], '--format openvino: --out must end with .xml, got a.onnx'),
    'custom op': (['--out', 'a.xml', '--deploy', '--custom-op'], '--custom-op writes .onnx, not .xml'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_arguments_end_in_one_line(case, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = BAD[case]
    status, _, error = tool('export', DETECTOR, 'x.pth', *args)
    assert (status, error.count('\n')) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_missing_package_is_named(tool, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *_: None if name == 'openvino' else there(name))
    status, _, error = tool('export', DETECTOR, 'x.pth', '--out', tmp_path / 'a.xml')
    assert (status, error) == (
        2,
        "error: OpenVINO needs openvino: pip install --no-build-isolation '.[openvino]' (in the checkout)\n",
    )


def test_bf16_is_refused_where_the_processor_has_none(tmp_path, monkeypatch):
    core = types.SimpleNamespace(get_property=lambda *_: ['FP32', 'INT8'])
    monkeypatch.setattr(openvino_file, '_core', lambda: core)
    with pytest.raises(UserError, match='has no bf16 on this processor'):
        openvino_file.compile_file(tmp_path / 'a.xml', 'bf16')


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    (tmp_path / 'a.xml').write_text('nothing')
    with pytest.raises(UserError, match='OpenVINO cannot read this network: ') as error:
        openvino_file.open_openvino(tmp_path / 'a.xml')
    assert '\n' not in str(error.value)


SIGNALS = """
import faulthandler, gc, signal, subprocess, sys
import numpy as np, openvino
from mmscconv.export.openvino_file import compile_file
faulthandler.enable()  # as pytest does: a stack for signal handlers
put = openvino.opset13.parameter([1, 3], np.float32)
openvino.save_model(openvino.Model([openvino.opset13.relu(put)], [put]), sys.argv[1])
first = compile_file(sys.argv[1], None)
second = compile_file(sys.argv[1], None)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print('told'))
subprocess.run(['true'])
"""


def test_signals_are_handled_after_programs_have_ended(tmp_path):
    done = subprocess.run([sys.executable, '-c', SIGNALS, tmp_path / 'm.xml'], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, 'told\n'), done.stderr[-2000:]
