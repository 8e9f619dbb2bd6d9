"""Broken annotations are named before a training starts; what mmdet leaves out is a warning."""

import json
import math
import re
import shutil

import pytest
from mmdet.registry import DATASETS
from mmengine.registry import init_default_scope

from helpers.paths import ROOT
from mmscconv.checks.voc import check_voc
from mmscconv.datasets.reading import annotations_checked
from mmscconv.engine.launch import run_errors_named
from mmscconv.errors import UserError


@pytest.fixture
def coco(tmp_path):
    """A file with two images and three annotations, and the function that builds mmdet's data set of it."""
    (tmp_path / 'images').mkdir()
    for name in 'ab':
        (tmp_path / 'images' / f'{name}.png').touch()
    content = {
        'images': [{'id': i, 'file_name': f'{n}.png', 'width': 64, 'height': 48} for i, n in enumerate('ab', 1)],
        'annotations': [
            {'id': 10 + i, 'image_id': 1 + i % 2, 'category_id': 3, 'bbox': [4, 5, 10, 20], 'area': 200, 'iscrowd': 0}
            for i in range(3)
        ],
        'categories': [{'id': 3, 'name': 'cat'}, {'id': 7, 'name': 'dog'}],
    }
    dataset = dict(
        type='CocoDataset', data_root=str(tmp_path), ann_file='train.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=('cat', 'dog')), pipeline=[],
    )  # fmt: skip

    def build(change=lambda content: None):
        text = change(content)
        (tmp_path / 'train.json').write_bytes(text if isinstance(text, bytes) else json.dumps(content).encode())
        init_default_scope('mmdet')
        with run_errors_named():
            return DATASETS.build(dataset)

    return build


def box(*values):
    return lambda content: content['annotations'][1].update(bbox=list(values))


def annotation(**changes):
    return lambda content: content['annotations'][1].update(changes)


ERRORS = {
    'NaN': (box(1, 2, math.nan, 4), r'annotation 11 has bbox \[1, 2, nan, 4\] and area 200, which must be finite'),
    'infinity': (box(math.inf, 2, 3, 4), r'annotation 11 has bbox \[inf, 2, 3, 4\]'),
    'area': (annotation(area=math.nan), r'annotation 11 has .* area nan, which must be finite'),
    'text': (box('1', 2, 3, 'x'), r"annotation 11 has bbox \['1', 2, 3, 'x'\], not four numbers"),
    'three numbers': (box(1, 2, 3), r'annotation 11 has bbox \[1, 2, 3\], not four numbers'),
    'no area': (lambda c: c['annotations'][1].pop('area'), 'annotation 11 has no area'),
    'category': (annotation(category_id=4), 'annotation 11 has category_id 4, which is not listed'),
    'id twice': (annotation(id=12), 'annotation id 12 stands twice'),
    'image twice': (lambda c: c['images'][1].update(id=1), 'image id 1 stands twice'),
    'no width': (lambda c: c['images'][1].pop('width'), 'image 2 lacks id, file_name, width or height'),
    'image not there': (lambda c: c['images'][1].update(file_name='c.png'), r'1 of 2 images .* first .*images/c\.png'),
    'class not there': (
        lambda c: c['categories'][1].update(name='dgo'),
        r"1 of 2 classes .* first 'dog': set metainfo\.classes in the config; the file has 'cat', 'dgo'",
    ),
    'no box is left': (
        lambda c: [a.update(bbox=[1, 1, 0, 0]) for a in c['annotations']], 'no annotation can be used',
    ),
    'no categories': (lambda c: c.pop('categories'), 'not in COCO format, it has no categories'),
    'list': (lambda c: b'[]', 'not in COCO format, it holds a list'),
    'not JSON': (lambda c: b'{"images": [', 'is not JSON'),
    'not UTF-8': (lambda c: '{"images": "Zürich"}'.encode('latin-1'), r'is not UTF-8: .* at byte 13'),
}  # fmt: skip


@pytest.mark.parametrize('case', ERRORS)
def test_a_broken_coco_file_is_one_line(case, coco, tmp_path, warnings):
    change, message = ERRORS[case]
    with pytest.raises(UserError, match=message) as error:
        coco(change)
    assert str(tmp_path / 'train.json') in str(error.value) and '\n' not in str(error.value)


DROPPED = {
    'zero area': (box(1, 2, 0, 4), r'1 of 3 annotations have a width or height below 1 .* first annotation 11 '),
    'negative': (box(10, 20, -5, 4), r'1 of 3 annotations have a width or height below 1 .* bbox \[10, 20, -5, 4\]'),
    'outside': (box(70, 2, 5, 5), '1 of 3 annotations have a box outside of the image'),
    'left of it': (box(-9, 2, 5, 5), '1 of 3 annotations have a box outside of the image'),
    'no such image': (annotation(image_id=9), 'annotations belong to an image that is not listed .* image_id 9'),
}


@pytest.mark.parametrize('case', DROPPED)
def test_what_mmdet_leaves_out_is_one_warning(case, coco, tmp_path, warnings):
    change, message = DROPPED[case]
    dataset = coco(change)
    assert sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))) == 2  # mmdet agrees
    (line,) = warnings
    assert re.search(message, line) and str(tmp_path / 'train.json') in line


def test_sound_files_pass_in_silence(coco, warnings):
    assert len(coco(box(-3.5, 2, 80, 4))) == 2  # partly outside of the image, as in COCO
    assert not warnings


def test_classes_left_out_on_purpose_are_told(coco, warnings):
    coco(lambda c: c['categories'].append({'id': 9, 'name': 'fox'}))
    assert "1 categories are not among the classes and are left out, first 'fox'" in warnings[0]


def test_mmdet_is_as_before_afterwards():
    from mmdet.datasets import CocoDataset

    before = CocoDataset.COCOAPI
    context = annotations_checked()
    context.__enter__()
    assert CocoDataset.COCOAPI is not before
    assert not context.__exit__(ValueError, ValueError(), None)
    assert CocoDataset.COCOAPI is before


XML = '<annotation><size><width>64</width><height>48</height></size>{}</annotation>'
OBJECT = '<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>'


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / 'VOC2007'
    for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / name).mkdir(parents=True)
    for name in ('1', '2'):
        (root / 'JPEGImages' / f'{name}.jpg').touch()
        (root / 'Annotations' / f'{name}.xml').write_text(XML.format(OBJECT.format('cat', 3, 8)))
    (root / 'ImageSets' / 'Main' / 'train.txt').write_text('1\n2\n')
    dataset = dict(
        type='VOCDataset', data_root=str(tmp_path), ann_file='VOC2007/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
    )  # fmt: skip
    return root, dict(train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dataset])))


VOC_ERRORS = {
    'NaN': (XML.format(OBJECT.format('cat', 'nan', 8)), r"has xmin='nan' in a box: .*2\.xml"),
    'word': (XML.format(OBJECT.format('cat', 3, 'x')), r"has xmax='x' in a box: .*2\.xml"),
    'cut': ('<annotation>', r'is not XML: .*2\.xml'),
    'encoding': (b'<?xml version="1.0" encoding="utf-8"?><a>\xff</a>', r'is not XML: .*2\.xml'),
    'no box': (XML.format('<object><name>cat</name></object>'), r'object without bndbox: .*2\.xml'),
}


@pytest.mark.parametrize('case', VOC_ERRORS)
def test_a_broken_voc_file_is_one_line(case, voc, warnings):
    root, cfg = voc
    text, message = VOC_ERRORS[case]
    (root / 'Annotations' / '2.xml').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        check_voc(cfg, ['train'])


@pytest.mark.parametrize('name', ['Annotations/2.xml', 'JPEGImages/2.jpg'])
def test_missing_voc_files_are_named(name, voc, warnings):
    root, cfg = voc
    (root / name).unlink()
    with pytest.raises(UserError, match=f'{name}.*train.txt|train.txt.*{name}'):
        check_voc(cfg, ['train'])


def test_voc_classes_and_flat_boxes(voc, warnings):
    root, cfg = voc
    check_voc(cfg, ['train'])
    assert not warnings
    objects = OBJECT.format('cat', 8, 3) + OBJECT.format('unicorn', 3, 8)
    (root / 'Annotations' / '2.xml').write_text(XML.format(objects))
    check_voc(cfg, ['train'])
    assert len(warnings) == 2
    assert "1 objects are named 'unicorn', which is not a class, and are left out, first in" in warnings[0]
    assert '1 boxes have no width or height, first [8.0, 2.0, 3.0, 9.0] in ' in warnings[1]
    for name in '12':
        (root / 'Annotations' / f'{name}.xml').write_text(XML.format(OBJECT.format('unicorn', 3, 8)))
    with pytest.raises(UserError, match='no object is of a class of the data set'):
        check_voc(cfg, ['train'])


@pytest.mark.parametrize(('kind', 'message'), [('XMLDataset', '`classes`'), ('Typo', 'Typo is not in')])
def test_a_voc_data_set_without_classes_is_left_to_who_builds_it(kind, message, voc, warnings):
    _, cfg = voc
    dataset = cfg['train_dataloader']['dataset']['datasets'][0]
    dataset['type'] = kind
    check_voc(cfg, ['train'])
    with pytest.raises((AssertionError, KeyError), match=message):
        DATASETS.build(dataset)


@pytest.mark.parametrize('source', ['made', 'published'])
def test_real_coco_and_voc_pass(source, real_data, published, warnings):
    import mmscconv
    from mmscconv.checks.files import datasets
    from mmscconv.configuration import move_data_root

    init_default_scope('mmdet')
    for name, root in (('retinanet_r50_coco', 'coco'), ('retinanet_r50_voc', 'VOCdevkit')):
        cfg = mmscconv.get_config(name)
        move_data_root(cfg, str(real_data / root if source == 'made' else published(root)))
        check_voc(cfg, ['train', 'val'])
        with annotations_checked():
            for dataset in datasets(cfg.train_dataloader):
                assert len(DATASETS.build(dataset)) > 0
    assert not warnings


def test_the_tool_says_it_before_it_trains(tool, digits, tmp_path):
    from helpers.running_tools import DIGITS

    shutil.copytree(digits, tmp_path / 'data')
    path = tmp_path / 'data' / 'annotations' / 'val.json'
    content = json.loads(path.read_text())
    content['annotations'][0]['bbox'][0] = math.nan
    path.write_text(json.dumps(content))
    status, _, stderr = tool(
        'train', ROOT / 'configs' / 'retinanet_r18_digits.py', '--data-root', tmp_path / 'data', '--work-dir',
        tmp_path / 'run', '--cfg-options', *DIGITS,
    )  # fmt: skip
    assert status == 2 and f'must be finite: {path}' in stderr.strip().splitlines()[-1]
    assert not list((tmp_path / 'run').glob('*.pth'))
