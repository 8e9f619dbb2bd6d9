"""Files of tools/own_dataset.py in use: objects that do not count, a third split, images in another place."""

import json
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from helpers.annotated import boxes_of, made_objects, write_coco, write_voc
from mmscconv.checks.files import check_data
from mmscconv.configuration import read_config
from mmscconv.own_data import job
from mmscconv.own_data.timing import StepTimes

OBJECTS = made_objects()
STEMS = list(OBJECTS)
SPLITS = {'train': STEMS[:5], 'val': STEMS[5:7]}
MARKED = {'train': STEMS[0], 'val': STEMS[6]}  # the first object of each; its class has others in val


@pytest.fixture
def made(tool, tmp_path, monkeypatch):
    """Run the tool without its timing; return the folder that it has written, and its text."""
    monkeypatch.setattr(job, 'time_steps', lambda config: StepTimes(1, 1, 'cpu'))

    def call(source):
        status, text, error = tool('own_dataset', source, '--out', tmp_path / 'out', '--size', '64x48')
        assert status == 0, error
        return tmp_path / 'out', text

    return call


def mark_voc(root):
    for stem in MARKED.values():
        path = root / 'Annotations' / f'{stem}.xml'
        path.write_text(path.read_text().replace('<difficult>0', '<difficult>1', 1))


def mark_coco(root, key):
    for split, stem in MARKED.items():
        path = root / 'annotations' / f'{split}.json'
        content = json.loads(path.read_text())
        (image,) = (image['id'] for image in content['images'] if image['file_name'] == f'{stem}.png')
        next(a for a in content['annotations'] if a['image_id'] == image)[key] = 1
        path.write_text(json.dumps(content))


def average_precision(truth, annotations):
    found = [dict(a, score=0.9 + 0.1 * a['iscrowd']) for a in annotations]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    return evaluation.stats[0]


@pytest.mark.parametrize(
    ('write', 'mark'),
    [
        (write_voc, mark_voc),
        (write_coco, lambda root: mark_coco(root, 'ignore')),
        (write_coco, lambda root: mark_coco(root, 'iscrowd')),
    ],
    ids=['difficult', 'ignore', 'iscrowd'],
)
def test_a_marked_object_is_neither_learnt_nor_hit_nor_miss(write, mark, made, tmp_path):
    source = write(tmp_path / 'data', OBJECTS, SPLITS)
    mark(source)
    out, text = made(source)
    assert '2 objects marked as crowd, ignored or difficult: not trained on, neither hit nor miss' in text
    truth = COCO(str(out / 'val.json'))
    annotations = truth.dataset['annotations']
    assert [a['iscrowd'] for a in annotations] == [0, 0, 1, 0]
    assert average_precision(truth, [a for a in annotations if not a['iscrowd']]) == pytest.approx(1)  # no miss
    assert average_precision(truth, annotations) == pytest.approx(1)  # nor a hit where there is none
    cfg = read_config(out / 'out.py')
    init_default_scope(cfg.default_scope)
    sample = DATASETS.build(cfg.train_dataloader.dataset)[0]['data_samples']
    assert Path(sample.img_path).stem == MARKED['train']
    assert (len(sample.gt_instances), len(sample.ignored_instances)) == (1, 1)


def test_a_third_split_is_written_too(made, tmp_path):
    splits = {**SPLITS, 'test': STEMS[7:]}
    out, text = made(write_voc(tmp_path / 'voc', OBJECTS, splits))
    assert 'wrote train.json, val.json, test.json and sheet.png beside it' in text
    for split, stems in splits.items():
        found = boxes_of(out / f'{split}.json')
        assert found == {stem: sorted(OBJECTS[stem]) for stem in stems}


def test_images_may_move_behind_data_root(made, tmp_path):
    source = write_voc(tmp_path / 'voc', OBJECTS, SPLITS)
    out, _ = made(source)
    moved = tmp_path / 'elsewhere' / 'images'
    moved.parent.mkdir()
    (source / 'JPEGImages').rename(moved)
    cfg = read_config(out / 'out.py', data_root=str(moved))
    check_data(cfg, ('train', 'val', 'test'))
    init_default_scope(cfg.default_scope)
    for split in ('train', 'val'):
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        paths = [Path(dataset[i]['data_samples'].img_path) for i in range(len(dataset))]
        assert paths == [moved / f'{stem}.png' for stem in SPLITS[split]]
    assert cfg.val_evaluator.ann_file == str(out / 'val.json')
