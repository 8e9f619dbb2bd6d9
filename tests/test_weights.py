"""The shipped weights: small, plain tensors, and as good as the metafile says."""

import json
import tarfile
from pathlib import PurePath

import pytest
import torch
import yaml

import mmscconv
from helpers.paths import ROOT
from helpers.running_tools import run_tool
from mmscconv.errors import UserError
from mmscconv.own_data.reading import choose_classes, read_data_set
from mmscconv.own_data.records import Account
from mmscconv.own_data.splitting import train_and_val
from mmscconv.own_data.writing import common_folder, write_splits

# Top-1 on each tenth test image, in percent; the metafile has that of all.
SUBSET = {'resnet20_cifar10': 85.6, 'scconv_resnet20_cifar10': 84.3}
# AP on each third validation image of BCCD, in percent.
CELLS_SUBSET = 53.3
NAMES = mmscconv.list_weights()
MODELS = {model['Name']: model for model in yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())['Models']}


def test_weights_and_metafile_name_each_other():
    assert sorted(name for name, model in MODELS.items() if 'Weights' in model) == NAMES
    for name in NAMES:
        assert MODELS[name]['Weights'] == mmscconv.get_weights(name).relative_to(ROOT).as_posix()


def test_they_are_small_and_hold_tensors_alone():
    files = [mmscconv.get_weights(name) for name in NAMES]
    assert sum(file.stat().st_size for file in files) < 15 * 2**20
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


@pytest.fixture(scope='module')
def cifar_subset(published, tmp_path_factory):
    """Each tenth test image of CIFAR-10, 1000 in class folders."""
    folder = tmp_path_factory.mktemp('cifar_subset')
    with tarfile.open(published('cifar10.tar.xz')) as archive:
        for member in archive:
            path = PurePath(member.name)
            if path.parts[0] == 'test' and path.suffix == '.jpg' and int(path.stem) % 10 == 0:
                archive.extract(member, folder, filter='data')
    assert len(list(folder.glob('test/*/*.jpg'))) == 1000
    return folder


@pytest.mark.parametrize('name', [name for name in NAMES if name.endswith('_cifar10')])
def test_cifar_gives_the_recorded_top1(name, tool, cifar_subset, tmp_path):
    config, weights = mmscconv.get_config(name).filename, mmscconv.get_weights(name)
    status, _, error = tool('test', config, weights, '--data-root', cifar_subset, '--work-dir', tmp_path)
    assert status == 0, error[-2000:]
    (result,) = tmp_path.glob('*/*.json')
    # An image on the border between two classes may turn on another processor.
    assert json.loads(result.read_text())['accuracy/top1'] == pytest.approx(SUBSET[name], abs=0.21)


def test_cells_give_the_recorded_ap_of_a_subset(published, tool, tmp_path):
    """Each third validation image of BCCD, in the files that own_dataset.py writes."""
    source = published('bccd') / 'BCCD'
    account = Account()
    data = read_data_set(source, None, None, account)
    classes = choose_classes(data, None, account)
    splits, _ = train_and_val(data.splits, 0, account)
    splits['val'] = splits['val'][::3]
    write_splits(splits, classes, tmp_path, common_folder(splits))
    (tmp_path / 'JPEGImages').symlink_to(source / 'JPEGImages')
    name = 'retinanet_scconv_r18_cells'
    config, weights = mmscconv.get_config(name).filename, mmscconv.get_weights(name)
    status, _, error = tool('test', config, weights, '--data-root', tmp_path, '--work-dir', tmp_path / 'run')
    assert status == 0, error[-2000:]
    (result,) = tmp_path.glob('run/*/*.json')
    assert json.loads(result.read_text())['coco/bbox_mAP'] * 100 == pytest.approx(CELLS_SUBSET, abs=0.31)


def test_unknown_weights_show_the_nearest():
    with pytest.raises(UserError, match=r'no weights of .*: did you mean retinanet_scconv_r18_digits'):
        mmscconv.get_weights('retinanet_scconv_r18_digit')
