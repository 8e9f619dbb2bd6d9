"""ncnn's files beside PyTorch: other sizes than they were traced at, and what is refused."""

import importlib.util
import json

import pytest
import torch
from torch import nn

from helpers.exportable import CLASSIFIER, DETECTOR, SHALLOW, altered_outputs
from helpers.runtimes import runtime
from helpers.trained import relative
from mmscconv.errors import UserError
from mmscconv.export import ncnn_file
from mmscconv.export.writing import open_ncnn

pytestmark = runtime('ncnn', 'pnnx', extra='ncnn')


def test_detector_runs_at_other_sizes(detector, digits, tool, tmp_path):
    model, checkpoint = detector
    out = tmp_path / 'd.param'
    status, text, error = tool('export', DETECTOR, checkpoint, '--out', out, '--data-root', digits, '--deploy')
    assert status == 0, error[-2000:]
    assert 'compared with PyTorch on 4 x ' in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ['d.bin', 'd.json', 'd.param']
    meta = json.loads((tmp_path / 'd.json').read_text())
    assert meta['classes'] == list('0123456789')
    assert (meta['inputs'], meta['outputs'][-1]) == (['image'], 'bbox_pred_2')
    run = open_ncnn(out)
    for size in ((3, 3, 96, 64), (1, 3, 192, 256)):
        image = torch.randn(size)
        with torch.no_grad():
            want = [level for kind in model.bbox_head(model.extract_feat(image)) for level in kind]
        assert max(map(relative, run(image), want)) < 5e-3


def test_classifier(classifier, tool, tmp_path):
    model, checkpoint, data = classifier
    out = tmp_path / 'c.param'
    status, text, error = tool('export', CLASSIFIER, checkpoint, '--out', out, '--data-root', data, *SHALLOW)
    assert status == 0, error[-2000:]
    assert 'inputs: image; outputs: logits' in text
    image = torch.randn(3, 3, 40, 57)
    with torch.no_grad():
        assert relative(open_ncnn(out)(image)[0], model(image, mode='tensor')) < 5e-3


def test_files_that_differ_are_not_kept(classifier, tool, tmp_path, monkeypatch):
    _, checkpoint, data = classifier
    altered_outputs(monkeypatch, 'ncnn')
    (tmp_path / 'c.param').write_text('of before')
    status, _, error = tool(
        'export', CLASSIFIER, checkpoint, '--out', tmp_path / 'c.param', '--data-root', data, *SHALLOW
    )
    assert status == 2
    assert 'c.param is not kept: on 4 x 32 x 32 logits is 1.0e-02 off in relative L2 norm, 5e-03 is allowed' in error
    assert [p.read_text() for p in tmp_path.iterdir()] == ['of before']


BAD = {
    'suffix': (['--out', 'a.txt', '--format', 'ncnn'], '--format ncnn: --out must end with .param, got a.txt'),
    'postprocess': (['--out', 'a.param', '--postprocess'], '--postprocess writes .onnx, .xml, not .param'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_arguments_end_in_one_line(case, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, message = BAD[case]
    status, _, error = tool('export', DETECTOR, 'x.pth', *args)
    assert (status, error.count('\n')) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(('there', 'wanted'), [('a.xml', 'a.param'), ('a.param', 'a.xml')])
def test_weights_of_another_format_are_not_overwritten(there, wanted, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / there).touch()
    status, _, error = tool('export', DETECTOR, 'x.pth', '--out', wanted)
    assert (status, error) == (2, f'error: a.bin belongs to {there}: --out needs another name\n')


def test_missing_package_is_named(tool, tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *_: None if name == 'pnnx' else there(name))
    status, _, error = tool('export', DETECTOR, 'x.pth', '--out', tmp_path / 'a.param')
    assert (status, error) == (
        2,
        "error: ncnn needs pnnx: pip install --no-build-isolation '.[ncnn]' (in the checkout)\n",
    )


class Compared(nn.Module):
    def forward(self, x):
        return ((x < 0.5) * x,)


def test_operator_that_ncnn_does_not_have_is_named(tmp_path):
    with pytest.raises(UserError, match=r'ncnn has no operator for torch\.lt, which this network needs'):
        ncnn_file.convert(Compared().eval(), [torch.randn(1, 3, 8, 8)], tmp_path / 'a.param', ['x'], ['y'])
    assert not list(tmp_path.iterdir())


def test_converter_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr('pnnx.EXEC_PATH', '/bin/false')
    with pytest.raises(UserError, match='pnnx cannot convert this network for ncnn: it ended with 1'):
        ncnn_file.convert(
            nn.Sequential(nn.ReLU()).eval(), [torch.randn(1, 3, 8, 8)], tmp_path / 'a.param', ['x'], ['y']
        )


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    for name in ('a.param', 'a.bin'):
        (tmp_path / name).write_text('nothing')
    with pytest.raises(UserError, match=r'ncnn cannot load .*a\.param and its \.bin'):
        ncnn_file.load(tmp_path / 'a.param', ['x'], ['y'])
