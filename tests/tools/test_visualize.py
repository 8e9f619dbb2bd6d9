import re

import cv2
import numpy as np
import pytest

from helpers.running_tools import run_tool

pytest.importorskip('mmdet')

CLASSIFIER = """
custom_imports = dict(imports=['mmscconv.models'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255], to_rgb=True),
    backbone=dict(type='{kind}', depth=18, base_channels=8, {extra}),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64),
)
"""


@pytest.fixture
def image(tmp_path):
    cv2.imwrite(str(tmp_path / 'image.png'), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    return tmp_path / 'image.png'


@pytest.fixture
def classifiers(tmp_path):
    settings = {'plain': ('mmdet.ResNet', 'norm_eval=False'), 'scconv': ('SCConvResNet', 'norm_eval=False')}
    for name, (kind, extra) in settings.items():
        (tmp_path / f'{name}.py').write_text(CLASSIFIER.format(kind=kind, extra=extra))
    return [tmp_path / f'{name}.py' for name in settings]


def is_drawn(path):
    """Return True if a PNG shows more than a few colours."""
    picture = cv2.imread(str(path))
    return picture is not None and min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_detectors(root, tmp_path, image):
    """From the folder of a user's images."""
    configs = [root / 'configs' / f'retinanet_{name}r18_digits.py' for name in ('', 'scconv_')]
    done = run_tool('visualize_features.py', image, *configs, '--size', 64, '--out-dir', 'new/out', cwd=tmp_path)
    assert is_drawn(tmp_path / 'new/out/features.png') and is_drawn(tmp_path / 'new/out/statistics.png')
    assert re.search(r'retinanet_scconv_r18_digits \(random weights\)\n  redundancy: layer1 0\.\d+', done.stdout)
    shares = re.search('informative: (.*)', done.stdout)[1]
    assert shares.count('.conv2.sru 0.') == 8 and done.stdout.count('informative') == 1


def test_classifiers_with_checkpoints(tool, tmp_path, image, classifiers):
    import torch
    from mmdet.models.backbones import ResNet

    state = ResNet(18, base_channels=8).state_dict()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()} | {'head.fc.bias': torch.zeros(5)}},
               tmp_path / 'whole.pth')  # fmt: skip
    torch.save({**state, 'fc.bias': torch.zeros(5)}, tmp_path / 'bare.pth')
    args = [image, classifiers[0], classifiers[0], '--size', 64, '--stage', 2, '--out-dir', tmp_path / 'out']
    status, out, error = tool(
        'visualize_features', *args, '--checkpoints', tmp_path / 'whole.pth', tmp_path / 'bare.pth', '--names', 'A', 'B'
    )
    assert status == 0, error
    whole, bare = re.findall('redundancy: (.*)', out)
    assert whole == bare and 'A (whole.pth)' in out and 'B (bare.pth)' in out
    assert is_drawn(tmp_path / 'out' / 'features.png')


def test_a_deeper_network_s_weights_are_refused(tool, tmp_path, image, classifiers):
    """All keys of the shallower one are there, with the same shapes."""
    import torch
    from mmdet.models.backbones import ResNet

    state = ResNet(34, base_channels=8).state_dict()
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, tmp_path / 'deep.pth')
    status, _, error = tool(
        'visualize_features', image, classifiers[0], classifiers[0], '--size', 64, '--out-dir', tmp_path / 'out',
        '--checkpoints', tmp_path / 'deep.pth', 'random',
    )  # fmt: skip
    assert status == 2 and 'is of another backbone' in error and 'first layer1.2.conv1.weight' in error


def test_images_are_normalized_as_in_a_run(tool, tmp_path, image, classifiers):
    """mmpretrain's configs have the data preprocessor at their top; CIFAR's arrays are RGB, where files are BGR."""
    inside = classifiers[0].read_text()
    settings = re.search(r'data_preprocessor=dict\(.*?\)', inside)[0]
    top = inside.replace(f'    {settings},\n', '')
    rgb = f"{top}{settings}\ntest_dataloader = dict(dataset=dict(type='CIFAR10'))\n".replace(
        'to_rgb=True', 'to_rgb=False'
    )
    for name, text in (('top', f'{top}{settings}\n'), ('rgb', rgb), ('other', top)):
        (tmp_path / f'{name}.py').write_text(text)
    found = []
    for pair in ((classifiers[0], tmp_path / 'top.py'), (tmp_path / 'rgb.py', tmp_path / 'other.py')):
        status, out, error = tool('visualize_features', image, *pair, '--size', 64, '--out-dir', tmp_path / 'out')
        assert status == 0, error
        found += re.findall('redundancy: (.*)', out)
    inside, top, rgb, other = found
    assert inside == top == rgb != other


def test_stages_of_two_resolutions_are_refused(tool, root, tmp_path, image):
    config = root / 'configs' / 'octconv_resnet50_imagenet.py'
    status, _, error = tool('visualize_features', image, config, config, '--size', 64, '--out-dir', tmp_path)
    assert status == 2 and 'layer1 gives a tuple of maps, not one map' in error and 'Traceback' not in error


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(image='nowhere.png'), 'cannot read an image from nowhere.png'),
        (dict(config='nowhere.py'), 'config is not there: nowhere.py'),
        (dict(config='empty.py'), 'config empty.py'),
        (
            dict(extra=['--stage', '5']),
            '--stage 5: plain (random weights) has the stages layer1, layer2, layer3, layer4',
        ),
        (dict(extra=['--size', '0']), '--stage, --channels and --size must be positive'),
        (dict(extra=['--checkpoints', 'nowhere.pth', 'random']), 'checkpoint is not there: nowhere.pth'),
        (dict(extra=['--checkpoints', 'other.pth', 'random']), 'other.pth does not fill the backbone'),
        (dict(extra=['--checkpoints', 'wide.pth', 'random']), 'wide.pth does not fit the backbone: size mismatch'),
        (dict(extra=['--out-dir', 'empty.py/out']), 'cannot write to empty.py/out'),
    ],
)
def test_user_errors(tool, tmp_path, monkeypatch, image, classifiers, changes, message):
    import torch

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty.py').touch()
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(8, 3, 7, 7)}}, 'other.pth')
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(9, 3, 7, 7)}}, 'wide.pth')
    args = [changes.get('image', 'image.png'), changes.get('config', 'plain.py'), 'scconv.py', '--size', 64]
    status, _, error = tool('visualize_features', *args, *changes.get('extra', []))
    assert status == 2
    assert f'error: {message}' in error
