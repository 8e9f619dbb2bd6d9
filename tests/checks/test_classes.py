"""Class names and their number, which stand in several places, are compared before a training."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

import mmscconv
from helpers.paths import ROOT
from mmscconv.checks.classes import check_checkpoint_classes, check_classes, check_heads
from mmscconv.engine.runner import CheckedRunner
from mmscconv.errors import UserError

PETS = ('cat', 'dog', 'fish')


def loader(classes, kind='CocoDataset', wrapped=False, **settings):
    metainfo = {} if classes is None else dict(metainfo=dict(classes=classes))
    dataset = dict(type=kind, data_root='data', ann_file='a.json', **metainfo, **settings)
    return dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset) if wrapped else dataset)


WRONG_NAMES = {
    'a text': ('cat', r"train_dataloader \(data/a.json\) has classes='cat', a text .* write \('cat',\), with"),
    'twice': (('cat', 'dog', 'cat'), "has the class 'cat' twice"),
    'blanks': (('cat', ' dog'), "has the class ' dog': give a name without blanks"),
    'byte order mark': (('\ufeffcat', 'dog'), 'give a name without blanks'),
    'empty': (('cat', ''), "has the class ''"),
    'numbers': ((1, 2), 'has the class 1: '),
    'a number': (3, 'has classes=3, which must be a tuple of names'),
}  # fmt: skip


@pytest.mark.parametrize('wrapped', [False, True], ids=['', 'wrapped'])
@pytest.mark.parametrize('case', WRONG_NAMES)
def test_classes_that_are_no_names(case, wrapped):
    classes, message = WRONG_NAMES[case]
    with pytest.raises(UserError, match=message):
        check_classes(dict(train_dataloader=loader(classes, wrapped=wrapped)), ['train'])


def test_classes_from_a_file_are_left_to_who_reads_it(tmp_path):
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    check_classes(dict(train_dataloader=loader(str(tmp_path / 'classes.txt'))), ['train'])


OTHER_CLASSES = {
    'order': (loader(PETS[::-1]), r"\('cat', 'dog', 'fish'\), val_.* has \('fish', 'dog', 'cat'\): set"),
    'number': (loader(PETS[:2]), r"has \('cat', 'dog'\): set the same"),
    'none of its own': (loader(None), r"has \('person', 'bicycle', 'car', 'motorcycle', ...\): set the same"),
    'inside of a wrapper': (loader(PETS[::-1], wrapped=True), 'set the same metainfo.classes, in the same order'),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHER_CLASSES)
def test_data_sets_of_other_classes(case):
    other, message = OTHER_CLASSES[case]
    with pytest.raises(UserError, match=message):
        check_classes(dict(train_dataloader=loader(PETS), val_dataloader=other), ['train', 'val'])


@pytest.mark.parametrize('name', mmscconv.list_configs('retinanet_*') + mmscconv.list_configs('*_imagenet'))
def test_shipped_configs_agree_with_themselves(name):
    check_classes(mmscconv.get_config(name), ['train', 'val', 'test'])


class Head(nn.Module):
    def __init__(self, num_classes, **attributes):
        super().__init__()
        self.num_classes = num_classes
        for key, value in attributes.items():
            setattr(self, key, value)


def model_of(**parts):
    model = nn.Module()
    for name, part in parts.items():
        owner = model
        *above, last = name.split('__')
        for attribute in above:
            if not hasattr(owner, attribute):
                owner.add_module(attribute, nn.Module())
            owner = getattr(owner, attribute)
        owner.add_module(last, part)
    return model


HEADS = {
    'too small': (model_of(bbox_head=Head(2)), 'model.bbox_head.num_classes is 2, but D has 3 classes'),
    'too large': (model_of(bbox_head=Head(80)), r'80, but D has 3 .*: set model\.bbox_head\.num_classes=3'),
    'in a list': (
        model_of(roi_head__bbox_head=nn.ModuleList([Head(3), Head(4)])), 'model.roi_head.bbox_head.1.num_classes is 4',
    ),
    'of masks': (model_of(roi_head__mask_head=Head(80)), 'model.roi_head.mask_head.num_classes is 80'),
    'inside of a wrapper': (model_of(module__bbox_head=Head(2)), 'model.bbox_head.num_classes is 2'),
    'in a loss': (model_of(bbox_head=model_of(loss_cls=Head(-1))), None),
    'of proposals': (model_of(rpn_head=Head(1), bbox_head=Head(3)), None),
    'for all classes at once': (model_of(mask_head=Head(80, class_agnostic=True)), None),
    'right': (model_of(bbox_head=Head(3)), None),
    'none': (nn.Conv2d(1, 1, 1), None),
}  # fmt: skip


@pytest.mark.parametrize('case', HEADS)
def test_heads_of_another_number(case):
    model, message = HEADS[case]
    if message is None:
        check_heads(model, dict(classes=PETS), 'D')
        return
    with pytest.raises(UserError, match=message):
        check_heads(model, dict(classes=PETS), 'D')


def test_heads_of_classifiers_and_panoptic_models(warnings):
    check_heads(model_of(head=Head(1000)), dict(classes=PETS), 'D', classifies=True)
    assert 'model.head.num_classes is 1000, but D has 3 classes' in warnings[0]
    with pytest.raises(UserError, match=r'model\.head\.num_classes is 2, but'):
        check_heads(model_of(head=Head(2)), dict(classes=PETS), 'D', classifies=True)
    check_heads(model_of(bbox_head=Head(80)), dict(classes=PETS, stuff_classes=PETS), 'D')
    check_heads(model_of(bbox_head=Head(80)), {}, 'D')
    with pytest.raises(UserError, match=r"D has classes='cat'"):
        check_heads(nn.Conv2d(1, 1, 1), dict(classes='cat'), 'D')


@pytest.mark.parametrize('key', ['classes', 'CLASSES', 'mmdet 2'])
def test_a_checkpoint_of_other_classes(key, warnings):
    def check(theirs, must_fit=True):
        checkpoint = dict(meta=dict(CLASSES=theirs) if key == 'mmdet 2' else dict(dataset_meta={key: theirs}))
        check_checkpoint_classes(checkpoint, PETS, 'a.pth', must_fit)

    check(list(PETS))
    check(PETS[:2])  # heads of another shape are told with the weights
    assert not warnings
    with pytest.raises(UserError, match=r"a.pth was trained with the classes \('fish', .* in the checkpoint's order"):
        check(PETS[::-1])
    check(PETS[::-1], must_fit=False)
    check(('chat', 'chien', 'poisson'))
    assert len(warnings) == 2
    check((*PETS, 'horse'))  # of class folders, of which the last has no images here
    assert len(warnings) == 2
    with pytest.raises(UserError, match=r'a.pth was trained with 4 classes .* each label would mean another class'):
        check(('ant', *PETS))
    check(('ant', *PETS), must_fit=False)
    check_checkpoint_classes({}, PETS, 'a.pth', True)
    check_checkpoint_classes(dict(meta=None), PETS, 'a.pth', True)


def test_class_folders_of_two_data_sets(tmp_path):
    """mmpretrain numbers each data set's folders by themselves."""
    from PIL import Image

    for folder in ('train/ant', 'train/bee', 'train/cat', 'val/ant', 'val/cat'):
        (tmp_path / folder).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / folder / '1.png')
    cfg = Config.fromfile(ROOT / 'configs' / 'cifar_short' / 'resnet20_cifar10.py')
    cfg.model.head.num_classes = 3
    cfg.work_dir, cfg.launcher, cfg.data_root = str(tmp_path / 'run'), 'none', str(tmp_path)
    for loader, folder in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        files = loader.dataset.dataset
        files.data_root, files.data_prefix = str(tmp_path), folder
        loader.dataset.device = 'cpu'
    runner = CheckedRunner.from_cfg(cfg)
    runner.build_train_loop(runner._train_loop)
    message = "val_dataloader has 2 classes, the data set of train_dataloader 3, 'bee' is in one of them alone"
    with pytest.raises(UserError, match=message):
        runner.build_val_loop(runner._val_loop)


def run(tool, name, digits, folder, *args, options=()):
    config = ROOT / 'configs' / 'retinanet_r18_digits.py'
    return tool(
        name, config, *args, '--data-root', digits, '--work-dir', folder, '--cfg-options', *options,
    )  # fmt: skip


def test_the_tools_compare_them(tool, digits, digits_run, tmp_path):
    from helpers.paths import ROOT
    from helpers.running_tools import DIGITS

    status, _, stderr = run(tool, 'train', digits, tmp_path, options=[*DIGITS, 'model.bbox_head.num_classes=3'])
    line = stderr.strip().splitlines()[-1]
    assert status == 2 and 'bbox_head.num_classes is 3, but the data set of train_dataloader has 10' in line
    status, _, stderr = run(
        tool, 'train', digits, tmp_path, options=[*DIGITS, 'val_dataloader.dataset.metainfo.classes=7']
    )
    assert status == 2 and 'val_dataloader' in stderr and 'has classes=7' in stderr
    config = tmp_path / 'config.py'
    base = ROOT / 'configs' / 'retinanet_scconv_r18_digits.py'
    meta = 'dict(metainfo=dict(classes=tuple("1023456789")))'
    config.write_text(
        f"_base_ = '{base}'\ntest_dataloader = dict(num_workers=0, persistent_workers=False, dataset={meta})\n"
    )
    checkpoint = digits_run / 'epoch_1.pth'
    status, _, stderr = tool('test', config, checkpoint, '--data-root', digits, '--work-dir', tmp_path)
    assert status == 2 and "was trained with the classes ('0', '1', '2', '3', ...), the config has ('1', '0'," in stderr
    assert torch.load(checkpoint, weights_only=False)['meta']['dataset_meta']['classes'] == tuple('0123456789')
    assert Config.fromfile(config).test_dataloader.dataset.type == 'CheckedCocoDataset'
