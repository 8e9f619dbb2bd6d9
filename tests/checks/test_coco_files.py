"""COCO files: what has one meaning is read so, by data set and evaluation alike, and told; the rest is one line."""

import json
import re
from contextlib import nullcontext

import pytest
import torch
from mmdet.registry import DATASETS, METRICS

from mmscconv.checks.coco import read_coco
from mmscconv.checks.evaluators import check_evaluators
from mmscconv.checks.files import check_data
from mmscconv.datasets.reading import annotations_checked
from mmscconv.errors import UserError

CLASSES = ('cat', 'dog', 'fish')


def content():
    """Return two images, the first with a cat and a dog, the second with a fish."""
    boxes = ((1, 1, [2, 3, 10, 12]), (1, 2, [30, 3, 8, 9]), (2, 3, [5, 6, 20, 21]))
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        annotations=[
            dict(id=n, image_id=i, category_id=c, bbox=box, area=box[2] * box[3], iscrowd=0)
            for n, (i, c, box) in enumerate(boxes, 1)
        ],
    )


def write(folder, change=lambda c: None, name='a.json', encoding='utf-8'):
    written = content()
    change(written)
    path = folder / name
    path.write_bytes(json.dumps(written).encode(encoding))
    return str(path)


def dataset_of(path, kind='CocoDataset', classes=CLASSES, **settings):
    return dict(
        type=kind, ann_file=path, metainfo=dict(classes=classes), pipeline=[], data_prefix=dict(img=''), **settings
    )


def names_in(dataset):
    """Return the class of each object, by image and left edge."""
    classes = dataset.metainfo['classes']
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [[classes[x['bbox_label']] for x in sorted(info['instances'], key=lambda x: x['bbox'])] for info in infos]


def evaluated(dataset, metric):
    """Return the AP of detections that are the ground truth itself, which the images' own names tell."""
    metric.dataset_meta = dataset.metainfo
    objects = [[('cat', [2, 3, 12, 15]), ('dog', [30, 3, 38, 12])], [('fish', [5, 6, 25, 27])]]
    for place, theirs in enumerate(objects):
        predicted = dict(
            bboxes=torch.tensor([box for _, box in theirs], dtype=torch.float),
            labels=torch.tensor([dataset.metainfo['classes'].index(name) for name, _ in theirs]),
            scores=torch.linspace(0.9, 0.5, len(theirs)),
        )
        img_id = dataset.get_data_info(place)['img_id']
        metric.process(None, [dict(img_id=img_id, ori_shape=(48, 64), pred_instances=predicted)])
    return metric.evaluate(2)['coco/bbox_mAP']


def numbered_from(start):
    return lambda c: [a.update(id=a['id'] + start - 1) for a in c['annotations']]


def text_ids(c):
    for entry in (*c['images'], *c['categories']):
        entry['id'] = f'no. {entry["id"]}'
    for a in c['annotations']:
        a.update(image_id=f'no. {a["image_id"]}', category_id=f'no. {a["category_id"]}')


def two_of_a_name(c):
    c['categories'].append(dict(id=9, name='cat'))
    c['annotations'][0]['category_id'] = 9


def no_size(c):
    c['annotations'].append(dict(id=77, image_id=1, category_id=1, bbox=[5, 5, 0, 9], area=45, iscrowd=0))


def ignored(c):
    c['annotations'].append(dict(id=77, image_id=1, category_id=1, bbox=[50, 30, 9, 9], area=81, iscrowd=0, ignore=1))


READ = {
    'as it should be': (lambda c: None, None),
    'categories in another order': (lambda c: c['categories'].reverse(), "in another order than the config's classes"),
    'ids from 0': (numbered_from(0), 'annotation ids are not all whole numbers from 1, first 0; numbered anew'),
    'ids as text': (lambda c: [a.update(id=str(a['id'])) for a in c['annotations']], "first '1'; numbered anew"),
    'no ids': (lambda c: [a.pop('id') for a in c['annotations']], 'first None; numbered anew'),
    'other ids as text': (text_ids, "image ids are not all whole numbers that the evaluation can hold, first 'no. 1'"),
    'no iscrowd': (lambda c: [a.pop('iscrowd') for a in c['annotations']], '3 of 3 annotations have no iscrowd'),
    'null iscrowd': (lambda c: c['annotations'][1].update(iscrowd=None), '1 of 3 annotations have no iscrowd'),
    'sizes as text': (lambda c: c['images'][0].update(width='64'), '1 widths and heights of images are not whole'),
    'two categories of a name': (two_of_a_name, "read as the same class, first 'cat'"),
    'a box without size': (
        no_size,
        '1 of 4 annotations have a width or height below 1 .* first annotation 77',
    ),
    'ignored': (ignored, '1 of 4 annotations are marked "ignore"'),
}


@pytest.mark.parametrize('kinds', [('CocoDataset', 'CocoMetric'), ('CheckedCocoDataset', 'CheckedCocoMetric')])
@pytest.mark.parametrize('case', READ)
def test_what_has_one_meaning_is_read_so_by_data_set_and_evaluation(case, kinds, tmp_path, told):
    change, message = READ[case]
    path = write(tmp_path, change)
    with annotations_checked() if kinds[0] == 'CocoDataset' else nullcontext():
        dataset = DATASETS.build(dataset_of(path, kinds[0], test_mode=True))
        metric = METRICS.build(dict(type=kinds[1], ann_file=path, metric='bbox'))
        assert evaluated(dataset, metric) == pytest.approx(1, abs=1e-9)
    assert names_in(dataset) == [['cat', 'dog'], ['fish']]
    lines = [line for line in told if message and re.search(message, line)]
    assert len(lines) == (message is not None) and all(path in line for line in told)
    if message is None:
        assert not told


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_marked_encodings_are_read(encoding, tmp_path, told):
    path = write(tmp_path, encoding=encoding)
    with annotations_checked():
        dataset = DATASETS.build(dataset_of(path))
        METRICS.build(dict(type='CocoMetric', ann_file=path))
    assert len(dataset) == 2
    assert told == [f'{path}: the file begins with a byte order mark; it is read as {encoding.upper()}']


@pytest.mark.parametrize('wrapper', ['ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset'])
def test_names_survive_wrappers_of_files_in_other_orders(wrapper, tmp_path, told):
    files = [write(tmp_path), write(tmp_path, lambda c: c['categories'].reverse(), 'b.json')]
    parts = [dataset_of(path, classes=('fish', 'cat', 'dog')) for path in files]
    if wrapper == 'ClassBalancedDataset':
        parts = [dict(type=wrapper, dataset=part, oversample_thr=1e-9) for part in parts]
    wrapped = dict(type='ConcatDataset', datasets=parts)
    if wrapper == 'RepeatDataset':
        wrapped = dict(type=wrapper, dataset=wrapped, times=1)
    with annotations_checked():
        dataset = DATASETS.build(wrapped)
    dataset.full_init()
    assert names_in(dataset) == [['cat', 'dog'], ['fish']] * 2


def change_first(part, **changes):
    return lambda c: c[part][0].update(changes)


REFUSED = {
    'a dict of images': (lambda c: c.update(images={'1': c['images'][0]}), 'its images are a dict, not a list'),
    'null annotations': (lambda c: c.update(annotations=None), 'its annotations are a NoneType, not a list'),
    'a list of texts': (lambda c: c['images'].insert(0, 'x'), r'images\[0\] is a str, not a dict'),
    'no category name': (lambda c: c['categories'][1].pop('name'), 'category 2 has no name'),
    'null category name': (change_first('categories', name=None), 'category 1 has the name None'),
    'category id null': (change_first('categories', id=None), 'category has id None, which is neither'),
    'category twice': (change_first('categories', id=2), 'category id 2 stands twice'),
    'file name null': (change_first('images', file_name=None), 'image 1 has file_name None, which is not a name'),
    'width null': (change_first('images', width=None), 'has width None, which is not a number of pixels'),
    'width 0': (change_first('images', width=0), 'has width 0, which is not a number of pixels'),
    'width NaN': (change_first('images', width=float('nan')), 'has width nan, which is not a number of pixels'),
    'image id a list': (change_first('images', id=[1]), r'image has id \[1\], which is neither number nor text'),
    'category as text': (
        change_first('annotations', category_id='1'),
        "annotation 1 has category_id '1', a text, but the list has 1, a number",
    ),
    'image as text': (change_first('annotations', image_id='2'), "image_id '2', a text, but the list has 2"),
    'image a list': (change_first('annotations', image_id=[2]), r'image_id \[2\], which is neither number nor text'),
    'huge box': (change_first('annotations', bbox=[0, 0, 1e30, 3]), 'is larger than any image'),
    'many digits': (change_first('annotations', bbox=[0, 0, 10**400, 3]), 'is larger than any image'),
    'true as coordinate': (change_first('annotations', bbox=[True, 0, 3, 3]), r'has bbox \[True, 0, 3, 3\], not four'),
    'area a text': (change_first('annotations', area='9'), "area '9', which is not a number"),
    'area larger than the evaluation counts': (change_first('annotations', area=1e11), 'is larger than any image'),
    'iscrowd a text': (change_first('annotations', iscrowd='no'), "iscrowd 'no', which must be 0 or 1"),
    'ignore 2': (change_first('annotations', ignore=2), 'ignore 2, which must be 0 or 1'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_meaning_is_one_line(case, tmp_path):
    change, message = REFUSED[case]
    path = write(tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
        read_coco(path)
    assert path in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('data', [b'', b'null', b'3', b'[', b'\xff\xfe\x00', b'[' * 100_000], ids=lambda d: repr(d[:5]))
def test_what_is_no_coco_file_is_one_line(data, tmp_path):
    (tmp_path / 'a.json').write_bytes(data)
    for path in (tmp_path / 'a.json', tmp_path):
        with pytest.raises(UserError, match='annotation file') as error:
            read_coco(str(path))
        assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_an_evaluation_counts_boxes_of_less_than_a_pixel_and_says_so(tmp_path, told):
    path = write(tmp_path, change_first('annotations', bbox=[2, 3, 0.5, 9]))
    with annotations_checked():
        dataset = DATASETS.build(dataset_of(path, test_mode=True))
        metric = METRICS.build(dict(type='CocoMetric', ann_file=path))
    assert names_in(dataset) == [['dog'], ['fish']]
    assert len(metric._coco_api.dataset['annotations']) == 3
    assert 'left out of the training, not of the evaluation, first annotation 1 ' in told[0]


def test_nothing_to_learn_is_an_error_and_nothing_to_find_a_warning(tmp_path, told):
    path = write(tmp_path, lambda c: c.update(annotations=[]))
    with annotations_checked():
        with pytest.raises(UserError, match=r'no annotation is of a class .*: .*, there is nothing to learn'):
            DATASETS.build(dataset_of(path))
        DATASETS.build(dataset_of(path, test_mode=True))
    assert 'there is nothing to find; the average precision will be -1' in told[-1]


def test_a_file_under_two_ids_is_a_warning_to_train_on_and_an_error_to_evaluate(tmp_path, told):
    path = write(tmp_path, change_first('images', file_name='2.png'))
    with annotations_checked():
        DATASETS.build(dataset_of(path))
        assert told == [
            f"{path}: 1 files stand under several image ids and are learnt from once for each, first '2.png'"
        ]
        for build in (
            lambda: DATASETS.build(dataset_of(path, test_mode=True)),
            lambda: METRICS.build(dict(type='CocoMetric', ann_file=path)),
        ):
            with pytest.raises(UserError, match=r"file_name '2\.png' stands under two image ids, 1 and 2, .*a\.json"):
                build()


@pytest.mark.parametrize('where', ['data set', 'loader of images'])
def test_images_in_another_storage_are_not_looked_for(where, tmp_path, told):
    settings = dict(data_root=str(tmp_path), test_mode=True)
    dataset = dataset_of(write(tmp_path), **settings) | dict(data_prefix=dict(img='images'))
    stored = dict(backend='local')  # stands in for LMDB or Petrel
    with annotations_checked():
        with pytest.raises(UserError, match=r'2 of 2 images .* are not there'):
            DATASETS.build(dataset)
        with pytest.raises(UserError, match='image folder for val is not there'):
            check_data(dict(val_dataloader=dict(dataset=dataset)), ['val'])
        if where == 'data set':
            dataset['backend_args'] = stored
        else:
            dataset['pipeline'] = [dict(type='LoadImageFromFile', backend_args=stored)]
        check_data(dict(val_dataloader=dict(dataset=dataset)), ['val'])
        assert len(DATASETS.build(dataset)) == 2


def test_annotations_in_another_storage_are_not_looked_for(tmp_path):
    stored = dict(backend='petrel', path_mapping={'data/': 's3://data/'})
    dataset = dict(type='CocoDataset', data_root='data/', ann_file='a.json', backend_args=stored)
    evaluator = dict(type='CocoMetric', ann_file='data/a.json', backend_args=stored)
    check_data(dict(val_dataloader=dict(dataset=dataset), val_evaluator=evaluator), ['val'])


def evaluation(dataset, truth, pipeline=()):
    dataset = dict(type='CocoDataset', ann_file=dataset, pipeline=pipeline)
    return dict(val_dataloader=dict(dataset=dataset), val_evaluator=[dict(type='CocoMetric', ann_file=truth)])


def test_an_evaluator_of_other_images_is_refused(tmp_path):
    mine = write(tmp_path)
    check_evaluators(evaluation(mine, str(tmp_path / '..' / tmp_path.name / 'a.json')), ['val'])
    check_evaluators(evaluation(mine, write(tmp_path, name='copy.json')), ['val'])
    for change, message in (
        (change_first('images', file_name='z.png'), r'image 1 is 1\.png in .*a\.json, but z\.png in .*b\.json'),
        (lambda c: c['images'].pop(), r'image 2 is 2\.png in .*a\.json, but not in .*b\.json'),
    ):
        other = write(tmp_path, change, 'b.json')
        with pytest.raises(
            UserError, match=f'val_evaluator.ann_file is of other images than val_dataloader: {message}'
        ):
            check_evaluators(evaluation(mine, other), ['val'])


def test_images_that_are_not_tested_are_refused(tmp_path, warnings):
    """All their objects would count as missed."""
    truth = write(tmp_path)
    part = write(tmp_path, lambda c: c['images'].pop(), 'part.json')
    with pytest.raises(
        UserError, match=r'val_evaluator.ann_file has 1 images that val_dataloader does not test, first 2'
    ):
        check_evaluators(evaluation(part, truth), ['val'])
    cfg = evaluation(truth, truth)
    cfg['val_dataloader']['dataset']['indices'] = 1
    check_evaluators(cfg, ['val'])
    assert 'val_dataloader takes a part of its images (indices)' in warnings[0]


def test_one_id_in_two_data_sets_is_refused(tmp_path):
    """The evaluator would take both images for one."""
    pack = dict(type='PackDetInputs', meta_keys=('img_id', 'instances'))
    first, second = write(tmp_path), write(tmp_path, name='b.json')
    (tmp_path / 'list.txt').write_text('1\n')
    both = [dict(type='CocoDataset', ann_file=path, pipeline=[pack]) for path in (first, second)]
    cfg = dict(val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=both)))
    cfg['val_evaluator'] = dict(type='CocoMetric')
    with pytest.raises(UserError, match=r'has an image 1 in .*a\.json and in .*b\.json, whose boxes val_evaluator'):
        check_evaluators(cfg, ['val'])
    both[1]['ann_file'] = str(tmp_path / 'list.txt')
    check_evaluators(cfg, ['val'])


def test_an_evaluator_without_ground_truth_is_refused(tmp_path):
    pack = dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape'))
    with pytest.raises(UserError, match=r"val_evaluator has no ann_file, .* add 'instances' to meta_keys"):
        check_evaluators(evaluation('a.json', None, [pack]), ['val'])
    check_evaluators(evaluation('a.json', None, [dict(pack, meta_keys=('img_id', 'instances'))]), ['val'])
