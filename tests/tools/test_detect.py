"""tools/detect.py beside tools/test.py on the same images, with weights that need no training."""

import json
import shutil

import pytest
import torch
from mmengine.config import Config
from PIL import Image

from helpers.exportable import DETECTOR, build
from mmscconv.datasets import CheckedVOCDataset
from mmscconv.engine import detecting
from mmscconv.errors import UserError


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('detector') / 'detector.pth'
    build(DETECTOR, path)
    return path


def test_boxes_are_those_of_the_evaluation(tool, digits, checkpoint, tmp_path):
    least = 'model.test_cfg.score_thr=0.0'
    status, _, error = tool(
        'test', DETECTOR, checkpoint, '--data-root', digits, '--work-dir', tmp_path / 'work',
        '--cfg-options', f'test_evaluator.outfile_prefix={tmp_path / "found"}', 'model.test_cfg.max_per_img=7', least,
    )  # fmt: skip
    assert status == 0, error[-2000:]
    want = json.loads((tmp_path / 'found.bbox.json').read_text())
    truth = json.loads((digits / 'annotations' / 'val.json').read_text())
    names = {i['id']: i['file_name'] for i in truth['images']}
    classes = {c['id']: c['name'] for c in truth['categories']}
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(DETECTOR)!r}\nmodel = dict(test_cfg=dict(score_thr=0.0, max_per_img=7))\n')
    arguments = (digits / 'val', '--config', config, '--checkpoint', checkpoint, '--score', 0)
    status, out, error = tool('detect', *arguments, '--json', '--out', tmp_path / 'drawn')
    assert status == 0, error[-2000:]
    found = json.loads(out)
    assert len(found) == len(want) == 4 * 7
    for one, other in zip(
        sorted(found, key=lambda d: (d['image'].rpartition('/')[2], d['label'], -d['score'])),
        sorted(want, key=lambda d: (names[d['image_id']], classes[d['category_id']], -d['score'])),
        strict=True,
    ):
        assert one['image'].endswith(names[other['image_id']])
        assert one['box'] == pytest.approx(other['bbox'], abs=1e-2)
        assert one['score'] == pytest.approx(other['score'], abs=1e-5)
        assert one['label'] == classes[other['category_id']]
    assert sorted(p.name for p in (tmp_path / 'drawn').iterdir()) == sorted(names.values())
    # The table has as many rows, below the head.
    status, out, _ = tool('detect', *arguments)
    assert status == 0 and out.count('\n| ') >= 4 * 7 and out.endswith('28 objects in 4 images\n')


@pytest.fixture
def bad(digits, checkpoint, tmp_path):
    image = next((digits / 'val').glob('*.png'))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'cut.png').write_bytes(image.read_bytes()[:-200])
    (tmp_path / 'text.png').write_text('no image')
    Image.new('RGB', (4000, 2)).save(tmp_path / 'thin.png')
    (tmp_path / 'twin').mkdir()
    shutil.copy(image, tmp_path / 'twin')
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    return {'image': image, 'folder': tmp_path, 'checkpoint': checkpoint}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.png'], 'image is not there: nowhere.png'),
        (['{folder}/empty'], 'no image (.bmp, '),
        (['{folder}/cut.png'], 'cut.png: the file is cut short'),
        (['{folder}/text.png'], 'image cannot be read: {folder}/text.png'),
        (['{image}', '{folder}/twin'], 'two images have one name'),
        (['{image}', '--score', '2'], '--score must lie in [0, 1], got 2.0'),
        (['{image}', '--config', 'retinanet_scconv_r18_digit'], 'did you mean retinanet_scconv_r18_digits'),
        (['{image}', '--config', 'scconv_resnet50_imagenet'], 'config has no detector'),
        (['{image}', '--checkpoint', 'nowhere.pth'], 'checkpoint is not there: nowhere.pth'),
        (['{image}', '--checkpoint', '{folder}/other.pth'], 'the checkpoint is not of this model'),
        (['{folder}/twin', '--out', '{folder}/twin'], 'the drawings would replace the images'),
        (
            ['{image}', '--out', '{folder}/text.png', '--checkpoint', '{folder}/other.pth'],
            'cannot make --out {folder}/text.png: File exists',
        ),
        (['{image}', '--device', 'gpu'], '--device gpu cannot be used here: '),
        (['{image}', '--device', 'cuda:77'], '--device cuda:77 cannot be used here'),
        (['{folder}/thin.png'], 'image cannot be prepared: {folder}/thin.png: OpenCV'),
    ],
)
def test_user_errors(arguments, message, bad, tool):
    arguments = [a.format(**bad) for a in arguments]
    if '--checkpoint' not in arguments:
        arguments += ['--checkpoint', bad['checkpoint']]
    status, out, error = tool('detect', *arguments)
    assert status == 2 and error.startswith('error: ') and error.count('\n') == 1, error
    assert message.format(**bad) in error and '|' not in out


@pytest.mark.parametrize(
    ('meta', 'config', 'want'),
    [
        ({'dataset_meta': {'CLASSES': ('a', 'b')}}, {'metainfo': {'classes': ('x',)}}, ('a', 'b')),
        ({'CLASSES': ('a', 'b')}, {'metainfo': {'classes': ('x',)}}, ('a', 'b')),  # mmdet 2
        ({}, {'metainfo': {'classes': ('x',)}}, ('x',)),
        ({}, {'val_dataloader': {'dataset': {'type': 'CheckedVOCDataset'}}}, CheckedVOCDataset.METAINFO['classes']),
    ],
)
def test_classes_are_the_checkpoint_s_or_the_config_s(meta, config, want):
    assert [*detecting._names({'meta': meta}, Config(config), 'a.pth')['classes']] == [*want]


def test_classes_that_nothing_names_are_refused():
    """mmdet would take COCO's names."""
    with pytest.raises(UserError, match=r'neither a\.pth nor .* names the classes'):
        detecting._names({}, Config({'model': {}}), 'a.pth')


def test_grey_and_turned_images(tool, checkpoint, tmp_path, digits):
    image = Image.open(next((digits / 'val').glob('*.png')))
    image.convert('L').save(tmp_path / 'grey.png')
    image.convert('RGBA').save(tmp_path / 'transparent.png')
    status, out, error = tool('detect', tmp_path, '--checkpoint', checkpoint, '--score', 0, '--out', tmp_path / 'drawn')
    assert status == 0, error[-2000:]
    assert 'in 2 images' in out and len(list((tmp_path / 'drawn').iterdir())) == 2


def test_links_to_images_are_not_drawn_over(tool, checkpoint, digits, tmp_path):
    image = next((digits / 'val').glob('*.png'))
    before = image.read_bytes()
    (tmp_path / 'links').mkdir()
    (tmp_path / 'links' / image.name).symlink_to(image)
    for out in ('links', 'links/../links'):
        arguments = (tmp_path / 'links', '--checkpoint', checkpoint, '--score', 0, '--out', tmp_path / out)
        status, _, error = tool('detect', *arguments)
        assert status == 2 and 'would replace the images' in error
    assert image.read_bytes() == before


def test_an_image_that_fails_late_loses_no_rows(tool, bad):
    late = bad['folder'] / 'zz.png'
    content = bytearray(bad['image'].read_bytes())
    header = content.index(b'IDAT') + 4
    content[header : header + 20] = bytes(20)
    late.write_bytes(content)
    arguments = (bad['image'], late, '--checkpoint', bad['checkpoint'], '--score', 0, '--json')
    status, out, error = tool('detect', *arguments)
    assert status == 2 and 'zz.png: OpenCV cannot decode it' in error, error
    assert {one['image'] for one in json.loads(out)} == {str(bad['image'])}
