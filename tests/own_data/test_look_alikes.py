"""tools/own_dataset.py on data sets in which one image, list or line can be taken for another."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from helpers.annotated import CLASSES, made_objects, write_images, write_labels, write_voc, write_yolo
from helpers.paths import ROOT
from mmscconv.errors import UserError
from mmscconv.own_data import job
from mmscconv.own_data.job import OwnDatasetJob
from mmscconv.own_data.reading import choose_classes, read_data_set
from mmscconv.own_data.records import Account, AnnotatedImage
from mmscconv.own_data.splitting import draw, train_and_val
from mmscconv.own_data.timing import StepTimes

OBJECTS = made_objects()
STEMS = list(OBJECTS)
SPLITS = {'train': STEMS[:6], 'val': STEMS[6:]}


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    monkeypatch.setattr(job, 'time_steps', lambda config: StepTimes(1, 1, 'cpu'))


def read(source, images=None):
    account = Account()
    data = read_data_set(Path(source), images, None, account)
    choose_classes(data, None, account)
    splits, how = train_and_val(data.splits, 0, account)
    return {name: [image.path.stem for image in found] for name, found in splits.items()}, [how, *account.lines()]


def yolo(root, **settings):
    write_yolo(root, OBJECTS, SPLITS)
    (root / 'data.yaml').write_text(yaml.safe_dump(dict(names=list(CLASSES), **settings)))
    return root


def test_a_test_set_that_is_val_is_no_third_set(tmp_path):
    splits, lines = read(yolo(tmp_path / 'y', train='images/train', val='images/val', test='images/val'))
    assert splits == SPLITS
    assert lines[1].startswith('2 images of test that are in val, too: left out of test')


def test_train_within_val_is_refused(tmp_path):
    with pytest.raises(UserError, match='no image is left to train on: all 6 of train are in val or test, too'):
        read(yolo(tmp_path / 'y', train='images/train', val='images'))


def test_links_to_one_folder_are_drawn_once(tmp_path):
    root = yolo(tmp_path / 'y', train='images/train', val='images/valid')
    for kind in ('images', 'labels'):
        (root / kind / 'valid').symlink_to(root / kind / 'train')
    splits, _ = read(root)
    assert sorted(splits['train'] + splits['val']) == SPLITS['train']


def copies(*counts):
    return [
        AnnotatedImage(Path(f'p{i}_jpg.rf.{j:032x}.jpg'), (9, 9))
        for i, count in enumerate(counts)
        for j in range(count)
    ]


def test_augmented_copies_of_one_picture_are_drawn_together():
    drawn = draw(copies(3, 3, 3, 3), 0)
    held = {image.path.name.partition('.rf.')[0] for image in drawn['val']}
    assert len(held) == 1 and len(drawn['val']) == 3 and len(drawn['train']) == 9
    with pytest.raises(UserError, match='3 can be used, all copies of one picture'):
        draw(copies(3), 0)
    drawn = draw(copies(1, 9), 0)
    assert all(drawn.values())


@pytest.mark.parametrize('preview', ['drawn/img_00.png', 'images/img_00.jpg'])
def test_two_images_with_one_label_file_are_refused(preview, tmp_path):
    root = tmp_path / 'flat'
    write_images(root / 'images', OBJECTS)
    write_labels(root / 'labels', OBJECTS)
    (root / preview).parent.mkdir(exist_ok=True)
    (root / preview).write_bytes((root / 'images' / 'img_00.png').read_bytes())
    with pytest.raises(
        UserError, match=r'img_00.txt may belong to .* or to .*: remove one of them, or name the folder'
    ):
        read(root)
    if preview.startswith('drawn'):
        assert sum(map(len, read(root, root / 'images')[0].values())) == len(OBJECTS)


def test_label_files_without_an_image_are_counted(tmp_path):
    root = yolo(tmp_path / 'y', train='images/train', val='images/val')
    (root / 'images' / 'train' / 'img_00.png').rename(root / 'images' / 'train' / 'img_00.heic')
    _, lines = read(root)
    assert lines[1].startswith('1 label files without an image that can be read: left out (first: ')
    assert 'img_00.txt' in lines[1]


def test_a_blank_line_among_classes_is_refused_and_one_at_the_end_is_not(tmp_path):
    root = tmp_path / 'flat'
    write_images(root, OBJECTS)
    write_labels(root, OBJECTS)
    (root / 'classes.txt').write_text('cat\ndog\nfish\n\n')
    read(root)
    (root / 'classes.txt').write_text('cat\n\ndog\nfish\n')
    with pytest.raises(UserError, match='a class has no name'):
        read(root)


def test_roboflows_paths_are_not_the_neighbours(tmp_path):
    for root in (tmp_path, tmp_path / 'v2'):
        write_images(root / 'train' / 'images', {stem: OBJECTS[stem] for stem in SPLITS['train']})
        write_labels(root / 'train' / 'labels', {stem: OBJECTS[stem] for stem in SPLITS['train']})
    settings = dict(train='../train/images', val='../train/images', names=list(CLASSES))
    (tmp_path / 'v2' / 'data.yaml').write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"'../train/images' may be .* or .*: write the one that is meant"):
        read(tmp_path / 'v2')


@pytest.mark.parametrize(('shape', 'values'), [([17, 3], 51), ([12, 2], 24), ([5, 1], 5)])
def test_keypoints_are_left_out_and_the_boxes_taken(shape, values, tmp_path):
    root = yolo(tmp_path / 'y', train='images/train', val='images/val', kpt_shape=shape)
    for file in (root / 'labels').rglob('*.txt'):
        lines = file.read_text().splitlines()
        file.write_text(''.join(f'{line} {"0.1 " * values}\n' for line in lines))
    account = Account()
    data = read_data_set(root, None, None, account)
    boxes = {image.path.stem: [box.corners for box in image.boxes] for image in data.images()}
    want = {stem: [pytest.approx(found[1:], abs=1e-3) for found in objects] for stem, objects in OBJECTS.items()}
    assert boxes == want
    assert account.lines()[0].startswith('16 keypoints of objects: left out')


def test_a_kpt_shape_that_is_none(tmp_path):
    with pytest.raises(UserError, match='kpt_shape is not a list of two numbers'):
        read(yolo(tmp_path / 'y', train='images/train', val='images/val', kpt_shape=[17]))


def coco_with(root, names, on_disk):
    """Write a COCO file of images ``names`` with one cat each, and the images ``on_disk``."""
    for name in on_disk:
        write_images(root / Path(name).parent, {Path(name).stem: OBJECTS['img_00']})
    images = [dict(id=i, file_name=name, width=64, height=48) for i, name in enumerate(names)]
    annotations = [dict(id=i + 1, image_id=i, category_id=1, bbox=[i, i, 20, 20]) for i in range(len(names))]
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='cat')])
    (root / 'boxes.json').write_text(json.dumps(content))
    account = Account()
    data = read_data_set(root, None, None, account)
    return {
        image.path.relative_to(root).as_posix(): [box.corners[0] for box in image.boxes] for image in data.images()
    }, account.lines()


def test_an_image_that_is_missing_is_not_another_of_its_name(tmp_path):
    found, lines = coco_with(tmp_path / 'a', ['seq0/1.png', 'seq1/1.png'], ['seq1/1.png'])
    assert found == {'seq1/1.png': [1]}
    assert lines == [f'1 images that are not there: left out (first: seq0/1.png of {tmp_path}/a/boxes.json)']
    found, _ = coco_with(tmp_path / 'b', ['seq0/1.png'], ['seq1/1.png'])
    assert found == {}
    found, _ = coco_with(tmp_path / 'c', ['val/1.png', 'other/2.png'], ['train/1.png', 'train/2.png'])
    assert found == {'train/2.png': [1]}
    found, _ = coco_with(tmp_path / 'd', ['x/1.png', 'y/1.png'], ['images/1.png'])
    assert found == {}


def test_the_objects_of_several_entries_of_one_image_are_joined(tmp_path):
    found, lines = coco_with(tmp_path / 'a', ['1.png', '1.png', '2.png'], ['1.png', '2.png'])
    assert found == {'1.png': [0, 1], '2.png': [2]}
    assert lines[0].startswith('1 entries of an image that is listed before: their objects are joined')


def run(source, out, **options):
    lines = list(OwnDatasetJob(source, out, size=(64, 48), **options).run(ROOT / 'tools'))
    return Config.fromfile(out / f'{out.name}.py'), lines


def with_difficult(root, stems):
    write_voc(root, OBJECTS, SPLITS)
    for stem in stems:
        file = root / 'Annotations' / f'{stem}.xml'
        file.write_text(file.read_text().replace('<difficult>0', '<difficult>1', 1))
    return root


@pytest.mark.parametrize('backbone', ['r18', 'r50'])
def test_ignored_objects_are_not_learnt_as_background(backbone, tmp_path):
    from mmdet.registry import TASK_UTILS

    cfg, _ = run(with_difficult(tmp_path / 'v', ['img_00']), tmp_path / 'out', backbone=backbone)
    init_default_scope('mmdet')
    assigner = TASK_UTILS.build(cfg.model.train_cfg.assigner)
    priors = torch.tensor([[0.0, 0, 20, 20], [30, 0, 50, 20], [30, 30, 50, 50]])
    truth = InstanceData(bboxes=priors[:1], labels=torch.tensor([0]))
    found = assigner.assign(InstanceData(priors=priors), truth, InstanceData(bboxes=priors[1:2]))
    assert found.gt_inds.tolist() == [1, -1, 0]
    plain, _ = run(with_difficult(tmp_path / 'w', []), tmp_path / 'plain', backbone=backbone)
    assert plain.model.train_cfg.assigner.ignore_iof_thr == -1


def test_an_image_with_ignored_objects_alone_is_not_trained_on(tmp_path):
    root = with_difficult(tmp_path / 'v', [])
    file = root / 'Annotations' / 'img_00.xml'
    file.write_text(file.read_text().replace('<difficult>0', '<difficult>1'))
    _, lines = run(root, tmp_path / 'out')
    assert any('1 images with crowd, ignored or difficult objects alone: left out of train' in line for line in lines)
    content = json.loads((tmp_path / 'out' / 'train.json').read_text())
    number = next(image['id'] for image in content['images'] if 'img_00' in image['file_name'])
    assert number not in {annotation['image_id'] for annotation in content['annotations']}


def test_the_recipe_counts_the_images_that_are_trained_on(tmp_path):
    root = write_yolo(tmp_path / 'y', OBJECTS, SPLITS)
    write_images(root / 'images' / 'train', {f'empty_{i}': [] for i in range(30)})
    with_empty, _ = run(root, tmp_path / 'out')
    without, _ = run(write_yolo(tmp_path / 'z', OBJECTS, SPLITS), tmp_path / 'other')
    assert with_empty.train_cfg == without.train_cfg
    assert with_empty.train_dataloader.batch_size == without.train_dataloader.batch_size


def test_an_image_whose_pixels_cannot_be_read_is_named(tmp_path, tool):
    root = write_yolo(tmp_path / 'y', OBJECTS, SPLITS)
    path = root / 'images' / 'train' / 'img_00.bmp'
    Image.open(path.with_suffix('.png')).save(path)
    path.with_suffix('.png').unlink()
    path.write_bytes(path.read_bytes()[:2000])
    status, _, error = tool('own_dataset', root, '--out', tmp_path / 'out')
    assert status == 2 and error.startswith(f'error: image is damaged: {path} (') and error.count('\n') == 1
    assert not (tmp_path / 'out').exists()
