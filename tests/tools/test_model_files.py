"""The list of models says what the configs are, and checkpoints can be published."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import mmscconv
from helpers.paths import ROOT

# One of each kind; `python tools/make_metafile.py --check` counts all, in minutes.
COUNTED = (
    'cifar/scconv_resnet56_cifar10',
    'cifar/tiedconv_densenet121_cifar100',
    'cifar/octconv_resnet50_cifar10',
    'cifar/scconv_resnext29_cifar10_folder',
    'cifar/wrn28_cifar100',
    'cifar/slimconv_k4-3_resnet50_cifar100',
    'spconv_resnet50_alpha3-4_imagenet',
    'scconv_resnet101_imagenet',
    'retinanet_scconv_r50_voc',
    'retinanet_r18_digits',
)


def models():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [yaml.safe_load((ROOT / path).read_text()) for path in index['Import']]
    collections = {collection['Name'] for content in files for collection in content['Collections']}
    return [model for content in files for model in content['Models']], collections


def test_every_config_is_listed_once():
    listed, collections = models()
    assert sorted(model['Config'] for model in listed) == [f'configs/{name}.py' for name in mmscconv.list_configs()]
    assert len({model['Name'] for model in listed}) == len(listed)
    assert {model['In Collection'] for model in listed} == collections == {'SCConv', 'SCConv baselines'}
    ours = {model['Name'] for model in listed if model['In Collection'] == 'SCConv'}
    assert ours == {m['Name'] for m in listed if {'scconv', 'sru', 'cru'} & set(m['Name'].replace('-', '_').split('_'))}


def test_counts_are_the_models(tool):
    status, _, stderr = tool('make_metafile', '--check', '--only', *COUNTED)
    assert status == 0, stderr[-2000:]


def test_wrong_counts_are_found(tool, tmp_path, monkeypatch):
    from mmscconv.complexity import counting

    right = counting.Complexity.__init__
    monkeypatch.setattr(counting.Complexity, '__init__', lambda self, params, *args: right(self, params + 1, *args))
    status, _, stderr = tool('make_metafile', '--check', '--only', COUNTED[0])
    assert status == 2
    assert 'is not what make_metafile.py makes: scconv_resnet56_cifar10' in stderr


def test_published_checkpoint(tool, digits_run, tmp_path):
    status, out, stderr = tool('publish_model', digits_run / 'epoch_1.pth', tmp_path / 'ours.pth')
    assert status == 0, stderr
    (published,) = tmp_path.iterdir()
    assert out.startswith(str(published)) and 'optimizer' in out
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.name == f'ours-{digest[:8]}.pth'
    content = torch.load(published, weights_only=True)
    assert set(content) == {'meta', 'state_dict'}
    want = torch.load(digits_run / 'epoch_1.pth', weights_only=False)
    assert all(torch.equal(content['state_dict'][key], value) for key, value in want['state_dict'].items())
    assert content['meta']['dataset_meta'] == want['meta']['dataset_meta']


def test_published_in_half(tool, digits_run, tmp_path):
    source = digits_run / 'epoch_1.pth'
    status, _, stderr = tool('publish_model', source, tmp_path / 'half.pth', '--half', '--bare')
    assert status == 0, stderr
    (published,) = tmp_path.iterdir()
    content, want = torch.load(published, weights_only=True), torch.load(source, weights_only=False)
    assert content['meta'] == {'dataset_meta': want['meta']['dataset_meta']}
    for name, weight in want['state_dict'].items():
        stored = content['state_dict'][name]
        assert stored.dtype is (torch.float16 if weight.is_floating_point() else weight.dtype), name
        torch.testing.assert_close(stored.to(weight.dtype), weight, rtol=1e-3, atol=1e-6)
    big = tmp_path / 'big.pth'
    torch.save({'state_dict': {'a.weight': torch.tensor([1e5])}}, big)
    status, _, stderr = tool('publish_model', big, tmp_path / 'x.pth', '--half')
    assert status == 2 and 'a.weight holds numbers that fp16 does not' in stderr


def test_mmdet_s_own_tool_publishes_ours(digits_run, tmp_path):
    import mmdet

    script = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'model_converters' / 'publish_model.py'
    # It knows nothing of torch 2.6's weights_only.
    env = {**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}
    command = [sys.executable, script, digits_run / 'epoch_1.pth', tmp_path / 'theirs.pth']
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'theirs-' in done.stdout + done.stderr


class Stranger:
    """Nothing that a checkpoint should hold."""


@pytest.mark.parametrize(
    ('write', 'message'),
    [
        (lambda path: path.write_bytes(b'PK'), 'is cut short or damaged|is not a file of torch.save'),
        (
            lambda path: torch.save({'state_dict': {}, 'x': Stranger()}, path),
            r'Stranger, which may run code .*--trusted',
        ),
        (lambda path: torch.save([1], path), 'holds a list, not a dict'),
        (lambda path: torch.save({'weights': 1}, path), 'has no state_dict'),
        (lambda path: None, 'checkpoint is not there'),
        (
            lambda path: torch.save({'state_dict': {'a': torch.ones(1), 'b': torch.tensor([torch.inf])}}, path),
            'weights that are not finite, such as b: ',
        ),
    ],
    ids=['damaged', 'code', 'list', 'no weights', 'missing', 'not finite'],
)
def test_bad_checkpoints_are_named(tool, tmp_path, write, message):
    write(tmp_path / 'bad.pth')
    status, _, stderr = tool('publish_model', tmp_path / 'bad.pth', tmp_path / 'out.pth')
    assert status == 2
    assert re.search(message, stderr), stderr
    assert str(tmp_path / 'bad.pth') in stderr
    assert not list(tmp_path.glob('out*'))


def test_half_of_a_checkpoint_is_refused(tool, digits_run, tmp_path):
    content = (digits_run / 'epoch_1.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(content[: len(content) // 2])
    status, _, stderr = tool('publish_model', tmp_path / 'half.pth', tmp_path / 'out.pth')
    assert status == 2 and 'damaged' in stderr and 'half.pth' in stderr


def test_unwritable_target(tool, digits_run, tmp_path):
    (tmp_path / 'file').touch()
    status, _, stderr = tool('publish_model', digits_run / 'epoch_1.pth', tmp_path / 'file' / 'out.pth')
    assert status == 2 and 'cannot write' in stderr
