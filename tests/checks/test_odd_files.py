"""Odd annotation files are refused in one line, or read and evaluated as an independent reader and evaluation do."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

pytest.importorskip('hypothesis', reason='hypothesis is not installed (pip install hypothesis)')

from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import init_default_scope
from PIL import Image

from helpers.drawn import outcomes
from helpers.odd_files import CLASSES, NAMES, SIZE, coco_files, voc_files
from helpers.reference_evaluation import Object, average_precision
from mmscconv.checks.voc import check_voc
from mmscconv.datasets.reading import annotations_checked
from mmscconv.errors import UserError

EXAMPLES = 150
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
ROUNDING = 6e-4  # mmdet gives three digits


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    for module in ('checks.voc', 'datasets.coco'):
        monkeypatch.setattr(f'mmscconv.{module}.warn', lambda line: None)
    init_default_scope('mmdet')


def one_line(error, folder):
    text = str(error)
    assert '\n' not in text.replace('\\n', '') and len(text) < 900
    assert str(folder) in text, text
    return 'refused'


def detections_for(objects, seed):
    """Return detections near the objects, some of a wrong class, size or place, and some of nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for thing in objects:
        for _ in range(2):
            box = np.array(thing.box) + rng.normal(0, 1.5, 4)
            name = thing.name if rng.random() < 0.8 else CLASSES[rng.integers(2)]
            found.append((thing.image, name, box))
    found += [(image, CLASSES[rng.integers(2)], rng.uniform(4, 30, 4)) for image in range(len(NAMES))]
    scores = rng.permutation(len(found)) / len(found)
    boxes = [tuple(float(np.float32(v)) for v in (b[0], b[1], max(b[2], 1), max(b[3], 1))) for _, _, b in found]
    return [
        Object(image, name, box, score=float(score))
        for (image, name, _), box, score in zip(found, boxes, scores, strict=True)
        if name in CLASSES
    ]


def measured(dataset, metric, detections):
    """Return the AP of the detections by mmdet's metric; an image's number is its place in the data set."""
    metric.dataset_meta = dataset.metainfo
    for place in range(len(dataset)):
        info = dataset.get_data_info(place)
        theirs = [d for d in detections if d.image == place]
        boxes = torch.tensor([d.box for d in theirs], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        predicted = dict(
            bboxes=boxes, scores=torch.tensor([d.score for d in theirs]),
            labels=torch.tensor([dataset.metainfo['classes'].index(d.name) for d in theirs], dtype=torch.long),
        )  # fmt: skip
        sample = dict(
            img_id=info['img_id'], ori_shape=SIZE[::-1], pred_instances=predicted, instances=info['instances']
        )
        metric.process(None, [sample])
    return metric.evaluate(len(dataset))


def objects_of(content):
    """Return what a COCO file says, each object with whether mmdet trains on it; by another way than the package's."""
    names = {json.dumps(c['id']): c['name'] for c in content['categories']}
    places = {json.dumps(i['id']): place for place, i in enumerate(content['images'])}
    for a in content.get('annotations') or ():
        place, name = places.get(key(a['image_id'], places)), names[key(a['category_id'], names)]
        x, y, w, h = a['bbox']
        if place is None or min(w, h) <= 0 or a['area'] <= 0 or name not in CLASSES:
            continue
        width, height = (int(float(content['images'][place][k])) for k in ('width', 'height'))
        if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
            continue
        ignored = bool(a.get('ignore') or 0)
        crowd = bool(a.get('iscrowd') or 0) or ignored
        yield Object(place, name, (x, y, w, h), crowd), min(w, h) >= 1 and not ignored


def key(value, known):
    """Return JSON's text of an id, or that of the equal number as which the list has it: 1 and 1.0."""
    text = json.dumps(value)
    if text in known or isinstance(value, str):
        return text
    return next((k for k in known if json.loads(k) == value), text)


def test_odd_coco_files(tmp_path_factory):
    found = outcomes(coco_files(), lambda case: outcome_of_coco(tmp_path_factory, *case), EXAMPLES)
    some_of_each(found)


def some_of_each(found):
    """Neither is everything refused, nor are all files so plain that nothing is."""
    assert found['refused'] >= 0.2 * found.total()
    assert found['read, AP agrees'] >= 0.2 * found.total()


def outcome_of_coco(tmp_path_factory, content, encoding):
    folder = tmp_path_factory.mktemp('coco')
    for name in NAMES:
        (folder / name).touch()
    (folder / 'a.json').write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    dataset = dict(
        type='CocoDataset', data_root=str(folder), ann_file='a.json', data_prefix=dict(img=''), test_mode=True,
        metainfo=dict(classes=CLASSES), pipeline=[], serialize_data=False,
    )  # fmt: skip
    try:
        with annotations_checked():
            built = DATASETS.build(dataset)
            metric = METRICS.build(dict(type='CocoMetric', ann_file=str(folder / 'a.json')))
    except UserError as error:
        return one_line(error, folder)
    said = list(objects_of(content))
    return agree(built, metric, [o for o, _ in said], [o for o, learnt in said if learnt])


def agree(dataset, metric, objects, learnt):
    """Compare the objects that a training would see, and the AP, with the reference."""
    seen = []
    for place in range(len(dataset)):
        for instance in dataset.get_data_info(place)['instances']:
            x1, y1, x2, y2 = instance['bbox']
            name = dataset.metainfo['classes'][instance['bbox_label']]
            seen.append((place, name, (x1, y1, x2, y2), bool(instance['ignore_flag'])))
    want = [(o.image, o.name, (o.box[0], o.box[1], o.box[0] + o.box[2], o.box[1] + o.box[3]), o.crowd) for o in learnt]
    assert sorted(seen) == sorted(want)
    detections = detections_for(objects, len(objects))
    got = measured(dataset, metric, detections)['coco/bbox_mAP']
    reference = average_precision(objects, detections, CLASSES)
    assert math.isclose(got, reference, abs_tol=ROUNDING), (got, reference)
    return 'read, nothing to find' if reference == -1 else 'read, AP agrees'


def xml_of(objects, changes):
    root = ElementTree.Element('annotation')
    size = ElementTree.SubElement(root, 'size')
    for name, value in zip(('width', 'height'), SIZE, strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    for thing in objects:
        entry = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(entry, 'name').text = thing['name']
        if thing['difficult'] is not None:
            ElementTree.SubElement(entry, 'difficult').text = thing['difficult']
        box = ElementTree.SubElement(entry, 'bndbox')
        for side, value in zip(SIDES, thing['box'], strict=True):
            ElementTree.SubElement(box, side).text = str(value)
    for tag, number, drop, text in changes:
        elements = [(parent, e) for parent in root.iter() for e in parent if e.tag == tag]
        if elements:
            parent, element = elements[number % len(elements)]
            if drop:
                parent.remove(element)
            else:
                element.text = text
    return ElementTree.tostring(root, encoding='unicode')


def size_in(root):
    """Return the size that an annotation gives, that of the image if it gives none."""
    try:
        width, height = (float(root.find('size').find(key).text) for key in ('width', 'height'))
    except (AttributeError, TypeError, ValueError):
        return SIZE
    return (width, height) if min(width, height) > 0 and (width % 1, height % 1) == (0, 0) else SIZE


def voc_objects_of(texts):
    """Return what VOC files say, by another way than the package's."""
    for place, text in enumerate(texts):
        root = ElementTree.fromstring(text)
        width, height = size_in(root)
        for entry in root.findall('object'):
            name = (entry.find('name').text or '').strip()
            box, difficult = entry.find('bndbox'), (entry.findtext('difficult') or '').strip() == '1'
            left, top, right, bottom = (int(float(box.find(side).text)) - 1 for side in SIDES)
            inside = min(right, width) > max(left, 0) and min(bottom, height) > max(top, 0)
            if name in CLASSES and right > left and bottom > top and inside:
                yield Object(place, name, (left, top, right - left, bottom - top), difficult)


def test_odd_voc_files(tmp_path_factory):
    found = outcomes(voc_files(), lambda case: outcome_of_voc(tmp_path_factory, *case), EXAMPLES)
    some_of_each(found)


def outcome_of_voc(tmp_path_factory, files, cut, separator, encoding):
    folder = tmp_path_factory.mktemp('voc')
    for name in ('Annotations', 'JPEGImages'):
        (folder / name).mkdir()
    texts = [xml_of(*file) for file in files]
    stems = [f'{place} image' for place in range(len(files))]
    for stem, text in zip(stems, texts, strict=True):
        Image.new('RGB', SIZE).save(folder / 'JPEGImages' / f'{stem}.jpg')
        (folder / 'Annotations' / f'{stem}.xml').write_text(text[:-5] if cut else text, encoding='utf-8')
    (folder / 'list.txt').write_bytes((separator.join(stems) + separator).encode(encoding))
    dataset = dict(
        type='VOCDataset', data_root=str(folder), ann_file='list.txt', data_prefix=dict(sub_data_root=''),
        test_mode=True, metainfo=dict(classes=CLASSES), pipeline=[], serialize_data=False,
    )  # fmt: skip
    try:
        check_voc(dict(val_dataloader=dict(dataset=dataset)), ['val'])
        with annotations_checked():
            built = DATASETS.build(dataset)
    except UserError as error:
        return one_line(error, folder)
    objects = list(voc_objects_of(texts))
    return agree(built, CocoMetric(), objects, objects)
