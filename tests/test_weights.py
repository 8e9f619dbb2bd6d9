"""The shipped weights: small, plain tensors, and as good as the metafile says."""

import json

import pytest
import torch
import yaml

import mmscconv
from helpers.paths import ROOT
from helpers.running_tools import run_tool
from mmscconv.errors import UserError

NAMES = mmscconv.list_weights()
MODELS = {model['Name']: model for model in yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']}


def test_weights_and_metafile_name_each_other():
    assert sorted(name for name, model in MODELS.items() if 'Weights' in model) == NAMES
    for name in NAMES:
        assert MODELS[name]['Weights'] == mmscconv.get_weights(name).relative_to(ROOT).as_posix()


def test_they_are_small_and_hold_tensors_alone():
    files = [mmscconv.get_weights(name) for name in NAMES]
    assert sum(file.stat().st_size for file in files) < 15e6
    for file in files:
        content = torch.load(file, weights_only=True)
        assert set(content) == {'state_dict', 'meta'} and set(content['meta']) == {'dataset_meta'}
        assert {t.dtype for t in content['state_dict'].values()} <= {torch.float16, torch.int64}


@pytest.fixture(scope='module')
def digits_of_the_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp('digits_of_the_demo')
    run_tool('make_digits.py', '--out', folder)
    return folder


@pytest.mark.parametrize('name', [name for name in NAMES if name.endswith('_digits')])
def test_digits_give_the_recorded_ap(name, tool, digits_of_the_demo, tmp_path):
    config = mmscconv.get_config(name).filename
    weights = mmscconv.get_weights(name)
    status, _, error = tool('test', config, weights, '--data-root', digits_of_the_demo, '--work-dir', tmp_path)
    assert status == 0, error[-2000:]
    (result,) = tmp_path.glob('*/*.json')
    (recorded,) = MODELS[name]['Results']
    # mmdet rounds to a tenth of a per cent; on a processor with other vectors the last digit may turn.
    ap = json.loads(result.read_text())['coco/bbox_mAP'] * 100
    assert ap == pytest.approx(recorded['Metrics']['box AP'], abs=0.11)


def test_unknown_weights_show_the_nearest():
    with pytest.raises(UserError, match=r'no weights of .*: did you mean retinanet_scconv_r18_digits'):
        mmscconv.get_weights('retinanet_scconv_r18_digit')
