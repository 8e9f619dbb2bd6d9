"""tools/own_dataset.py: a folder of annotated images in any form becomes one training set and a config."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from helpers.annotated import (
    CLASSES,
    SIZE,
    boxes_of,
    coco_content,
    made_objects,
    write_coco,
    write_images,
    write_labels,
    write_voc,
    write_yolo,
)  # fmt: skip
from helpers.drawn import outcomes
from helpers.paths import ROOT
from helpers.photographs import COCO_IMAGES, VOC_IMAGES
from mmscconv.checks.image_files import size_of
from mmscconv.errors import UserError
from mmscconv.own_data import job
from mmscconv.own_data.image_list import measured
from mmscconv.own_data.job import OwnDatasetJob
from mmscconv.own_data.reading import choose_classes, read_data_set
from mmscconv.own_data.recipe import choose_recipe
from mmscconv.own_data.records import Account, AnnotatedImage, Box
from mmscconv.own_data.sheet import as_loaded
from mmscconv.own_data.splitting import train_and_val
from mmscconv.own_data.timing import StepTimes
from mmscconv.own_data.writing import coco_content as written
from mmscconv.own_data.writing import common_folder, write_splits

STEMS = list(made_objects())
SPLITS = {'train': STEMS[:6], 'val': STEMS[6:]}


def read(source, images=None, form=None, classes=None, seed=0):
    """Return (splits, classes, the account's lines)."""
    account = Account()
    data = read_data_set(Path(source), images, form, account)
    classes = choose_classes(data, classes, account)
    splits, how = train_and_val(data.splits, seed, account)
    return splits, classes, [how, *account.lines()]


def convert(source, out, **options):
    splits, classes, lines = read(source, **options)
    out.mkdir()
    write_splits(splits, classes, out, common_folder(splits))
    return classes, lines


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """Training steps take seconds, those of large backbones minutes."""
    monkeypatch.setattr(job, 'time_steps', lambda config: StepTimes(1, 1, 'cpu'))


def stems(images):
    return [image.path.stem for image in images]


@pytest.fixture
def objects():
    return made_objects()


@pytest.fixture
def voc(tmp_path, objects):
    return write_voc(tmp_path / 'voc', objects, {'train': SPLITS['train'], 'val': SPLITS['val']})


@pytest.fixture
def coco(tmp_path, objects):
    return write_coco(tmp_path / 'coco', objects, SPLITS)


@pytest.fixture
def yolo(tmp_path, objects):
    return write_yolo(tmp_path / 'yolo', objects, SPLITS)


def test_three_forms_give_the_same_boxes(voc, coco, yolo, objects, tmp_path):
    for source in (voc, coco, yolo):
        out = tmp_path / f'out_{source.name}'
        classes, lines = convert(source, out)
        assert classes == list(CLASSES)
        assert lines == ["split: the data set's own"]
        for split, names in SPLITS.items():
            found = boxes_of(out / f'{split}.json')
            assert list(found) == names
            for stem in names:
                assert [box[0] for box in found[stem]] == [box[0] for box in sorted(objects[stem])]
                np.testing.assert_allclose(
                    [box[1:] for box in found[stem]], [box[1:] for box in sorted(objects[stem])], atol=1e-3
                )


def test_the_drawn_boxes_as_predictions_have_ap_1(voc, coco, yolo, objects, tmp_path):
    """Evaluated as a training would be, on the file that was written: ids, names and sizes are in order."""
    for source in (voc, coco, yolo):
        out = tmp_path / f'out_{source.name}'
        convert(source, out)
        truth = COCO(str(out / 'val.json'))
        images = {Path(image['file_name']).stem: image['id'] for image in truth.dataset['images']}
        found = truth.loadRes(
            [
                dict(image_id=images[stem], category_id=truth.getCatIds([label])[0], score=1.0,
                     bbox=[x1, y1, x2 - x1, y2 - y1])
                for stem in SPLITS['val']
                for label, x1, y1, x2, y2 in objects[stem]
            ]
        )  # fmt: skip
        evaluation = COCOeval(truth, found, 'bbox')
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
        assert evaluation.stats[0] == pytest.approx(1)


def test_coco_files_are_what_pycocotools_and_mmdet_expect(voc):
    splits, classes, _ = read(voc)
    content = written(splits['train'], classes, common_folder(splits))
    assert [annotation['id'] for annotation in content['annotations']] == list(range(1, 13))
    assert [category['name'] for category in content['categories']] == classes
    assert all(annotation['iscrowd'] == 0 for annotation in content['annotations'])
    assert all(a['area'] == a['bbox'][2] * a['bbox'][3] for a in content['annotations'])


def voc_as(data, objects_of):
    """Each file of a VOC folder as stem -> [(label, corners)], with the standard library alone."""
    result = {}
    for file in sorted((data / 'Annotations').glob('*.xml')):
        entries = ElementTree.parse(file).iter('object')
        boxes = [
            (e.findtext('name'), *(int(e.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')))
            for e in entries
        ]
        result[file.stem] = [box for box in boxes if box[3] - box[1] > 1 and box[4] - box[2] > 1] or objects_of
    return result


def test_bccd_in_three_forms(published, tmp_path):
    """The published VOC folder, and the same boxes written as COCO and as YOLO, box by box."""
    source = published('bccd') / 'BCCD'
    boxes = voc_as(source, [])
    lists = {name: (source / 'ImageSets' / 'Main' / f'{name}.txt').read_text().split() for name in ('trainval', 'test')}
    splits = {'train': lists['trainval'], 'val': lists['test']}
    names, size = ('Platelets', 'RBC', 'WBC'), (640, 480)
    coco, yolo = tmp_path / 'coco', tmp_path / 'yolo'
    for split, chosen in splits.items():
        content = coco_content({stem: boxes[stem] for stem in chosen}, size, names)
        for image in content['images']:
            image['file_name'] = Path(image['file_name']).with_suffix('.jpg').name
        coco.mkdir(exist_ok=True)
        (coco / f'{split}.json').write_text(json.dumps(content))
        (yolo / 'labels').mkdir(parents=True, exist_ok=True)
        (yolo / f'{split}.txt').write_text(''.join(f'images/{stem}.jpg\n' for stem in chosen))
        for stem in chosen:
            lines = [
                f'{names.index(n)} {(x1 + x2) / 1280:.6f} {(y1 + y2) / 960:.6f} {(x2 - x1) / 640:.6f} '
                f'{(y2 - y1) / 480:.6f}'
                for n, x1, y1, x2, y2 in boxes[stem]
            ]
            (yolo / 'labels' / f'{stem}.txt').write_text('\n'.join(lines))
    (yolo / 'images').symlink_to(source / 'JPEGImages')
    (yolo / 'data.yaml').write_text(yaml.safe_dump(dict(train='train.txt', val='val.txt', names=list(names))))

    _, lines = convert(source, tmp_path / 'from_voc')
    assert [line.split(' (')[0] for line in lines[1:]] == ['2 boxes of no size, a pixel wide or high at most: left out']
    convert(coco, tmp_path / 'from_coco', images=source / 'JPEGImages')
    convert(yolo, tmp_path / 'from_yolo')
    for split, count in (('train', 292), ('val', 72)):
        reference = {stem: sorted(boxes[stem]) for stem in splits[split]}
        assert len(reference) == count
        for form in ('voc', 'coco', 'yolo'):
            found = boxes_of(tmp_path / f'from_{form}' / f'{split}.json')
            assert set(found) == set(reference)
            for stem, wanted in reference.items():
                rounded = sorted((box[0], *(round(v, 2) for v in box[1:])) for box in found[stem])
                assert [box[0] for box in rounded] == [box[0] for box in wanted]
                np.testing.assert_allclose([b[1:] for b in rounded], [b[1:] for b in wanted], atol=0.011)


def edit_voc(voc, stem, old, new):
    path = voc / 'Annotations' / f'{stem}.xml'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_what_is_left_out_is_counted(voc, objects):
    first = objects['img_00'][0]
    edit_voc(voc, 'img_00', f'<xmax>{first[3]}', f'<xmax>{first[1]}')  # no width
    edit_voc(voc, 'img_01', '<xmin>3<', '<xmin>-5<')  # reaches out
    edit_voc(voc, 'img_02', '<xmin>3<', '<xmin>nan<')
    edit_voc(voc, 'img_03', '<name>', '<name> ')
    edit_voc(voc, 'img_04', '<difficult>0', '<difficult>1')
    edit_voc(voc, 'img_05', '<width>64', '<width>65')
    (voc / 'JPEGImages' / 'img_06.png').write_bytes(b'no image')
    (voc / 'Annotations' / 'img_99.xml').write_text('<annotation><object>')
    splits, _, lines = read(voc)
    assert {line.split(' (first')[0] for line in lines[1:]} == {
        '1 boxes of no size, a pixel wide or high at most: left out',
        '1 boxes that reach out of their image: clipped',
        '1 boxes without four finite numbers in order: left out',
        '1 class names with blanks around them: taken without',
        '1 objects marked as crowd, ignored or difficult: not trained on, neither hit nor miss',
        '1 images of another size than their annotations say: left out',
        '1 images that cannot be read: left out',
        '1 annotation files that no list of ImageSets/Main names: left out',
    }
    assert (len(splits['train']), len(splits['val'])) == (5, 1)
    clipped = next(image for image in splits['train'] if image.path.stem == 'img_01')
    assert min(box.corners[0] for box in clipped.boxes) == 0


def test_lists_of_imagesets(tmp_path, objects):
    """trainval and test are VOC's protocol; names may have blanks, and a second column behind them."""
    renamed = dict(objects)
    renamed['my cell 1'] = renamed.pop('img_00')
    lists = {'train': STEMS[1:4], 'val': STEMS[4:6], 'trainval': ['my cell 1', *STEMS[1:6]], 'test': STEMS[6:]}
    root = write_voc(tmp_path / 'a', renamed, lists)
    path = root / 'ImageSets' / 'Main' / 'trainval.txt'
    path.write_bytes(b'\xef\xbb\xbf' + '\n\n'.join(['my cell 1  1', *(f'{stem} -1' for stem in STEMS[1:6])]).encode())
    splits, _, lines = read(root)
    assert stems(splits['train']) == [*STEMS[1:6], 'my cell 1']
    assert stems(splits['val']) == STEMS[6:]
    assert lines == ["split: the data set's own"]


def test_voc_under_other_names_and_without_lists(tmp_path, objects):
    root = write_voc(tmp_path / 'a', objects)
    (root / 'Annotations').rename(root / 'labels of mine')
    (root / 'JPEGImages').rename(root / 'photos')
    splits, _, lines = read(root)
    assert (len(splits['train']), len(splits['val'])) == (6, 2)
    assert lines == ['split: one image in 5 for validation, drawn with seed 0']
    again, _, _ = read(root)
    other, _, _ = read(root, seed=1)
    assert stems(splits['val']) == stems(again['val']) != stems(other['val'])
    for image in [*splits['train'], *splits['val']]:
        assert [box.label for box in image.boxes] == [box[0] for box in objects[image.path.stem]]


def test_the_draw_depends_on_the_images_alone(tmp_path, objects):
    voc = write_voc(tmp_path / 'voc', objects)
    flat = tmp_path / 'flat'
    write_images(flat, objects)
    write_labels(flat, objects)
    (flat / 'classes.txt').write_text('\n'.join(CLASSES))
    assert stems(read(voc)[0]['val']) == stems(read(flat)[0]['val'])


def test_an_image_is_not_trained_and_validated_on(yolo):
    (yolo / 'data.yaml').write_text(
        yaml.safe_dump(dict(train=['images/train', 'images/val'], val='images/val', names=list(CLASSES)))
    )
    splits, _, lines = read(yolo)
    assert stems(splits['train']) == SPLITS['train']
    assert lines[1].startswith('2 images of train that are in val, too: left out of train')


def test_the_same_images_to_train_and_to_validate_are_split(yolo):
    (yolo / 'data.yaml').write_text(yaml.safe_dump(dict(train='images/train', val='images/train', names=list(CLASSES))))
    splits, _, lines = read(yolo)
    assert (len(splits['train']), len(splits['val'])) == (5, 1)
    assert lines[0].startswith('train and val name the same images')


def test_yolo_paths_as_roboflow_writes_them(tmp_path, objects):
    root = tmp_path / 'export'
    for folder, split in (('train', 'train'), ('valid', 'val')):
        chosen = {stem: objects[stem] for stem in SPLITS[split]}
        write_images(root / folder / 'images', chosen)
        write_labels(root / folder / 'labels', chosen)
    settings = dict(train='../train/images', val='../valid/images', test='../test/images', nc=3, names=list(CLASSES))
    (root / 'data.yaml').write_text(yaml.safe_dump(settings))
    splits, _, _ = read(root)
    assert {split: stems(images) for split, images in splits.items()} == SPLITS
    (root / 'data.yaml').unlink()
    splits, classes, lines = read(root)
    assert {split: stems(images) for split, images in splits.items()} == SPLITS
    assert classes == ['0', '1', '2']
    assert lines[1].startswith('1 data set without a list of classes')


def test_lists_of_darknet(tmp_path, objects):
    """train.txt and valid.txt name the images by paths of another machine."""
    root = tmp_path / 'darknet'
    write_images(root / 'obj', objects)
    write_labels(root / 'obj', objects)
    (root / 'obj.names').write_text('\n'.join(CLASSES))
    for name, split in (('train', 'train'), ('valid', 'val')):
        (root / f'{name}.txt').write_text('\n'.join(f'data/obj/{stem}.png' for stem in [*SPLITS[split], f'no_{split}']))
    splits, classes, lines = read(root)
    assert {split: stems(images) for split, images in splits.items()} == SPLITS
    assert classes == list(CLASSES)
    assert lines[1].startswith('2 images that are not there: left out')


def test_yolo_lines_that_are_no_boxes(yolo):
    path = yolo / 'labels' / 'train' / 'img_00.txt'
    path.write_text(
        '0 0.2 0.2 0.6 0.2 0.6 0.6\n'  # a triangle
        '1 0.5 0.5 0.2 0.2 0.9\n'  # a score
        '7 0.5 0.5 0.2 0.2\n'
        'cat 0.5 0.5 0.2 0.2\n'
        '2 0.5 0.5 0.2\n'
        '2 250 120 60 40\n'  # pixels
    )
    (yolo / 'labels' / 'train' / 'img_01.txt').unlink()
    splits, _, lines = read(yolo)
    (box,) = splits['train'][0].boxes
    assert (box.label, *(round(v, 3) for v in box.corners)) == ('cat', 12.8, 9.6, 38.4, 28.8)
    assert {line.split(' (first')[0] for line in lines[1:]} == {
        '1 polygons: the boxes around them are taken',
        '2 lines without a class and four numbers or a polygon: left out',
        '2 objects of a class that is not listed: left out',
        '1 boxes outside of their image: left out',
        '1 images without a label file: taken as images without objects',
    }


@pytest.fixture
def labelimg(tmp_path, objects):
    """Two folders as LabelImg leaves them, with a list of classes in each."""
    for split, stems in SPLITS.items():
        chosen = {stem: objects[stem] for stem in stems}
        write_images(tmp_path / 'drawn' / split, chosen)
        write_labels(tmp_path / 'drawn' / split, chosen)
        (tmp_path / 'drawn' / split / 'classes.txt').write_text('\n'.join(CLASSES))
    return tmp_path / 'drawn'


def test_lists_of_classes_that_differ_are_refused(labelimg):
    assert read(labelimg)[1] == list(CLASSES)
    (labelimg / 'val' / 'classes.txt').write_text('\n'.join(reversed(CLASSES)))
    with pytest.raises(UserError, match=r'train/classes\.txt and .*val/classes\.txt list other classes'):
        read(labelimg)


@pytest.mark.parametrize('names', ['[yes, no, fish]', '{0: cat, 1: off, 2: fish}'])
def test_truth_values_are_no_classes(names, yolo):
    (yolo / 'data.yaml').write_text(f'train: images/train\nval: images/val\nnames: {names}\n')
    with pytest.raises(UserError, match=r"truth values: quote such names, as in 'yes', in .*data\.yaml"):
        read(yolo)


@pytest.mark.parametrize('split', SPLITS)
def test_a_damaged_split_is_named(split, coco):
    path = coco / 'annotations' / f'{split}.json'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf'is not JSON: .*{split}\.json .*restore the file, or take it out'):
        read(coco)


def test_json_files_that_are_not_read_are_named(coco, voc):
    for path in (coco / 'annotations').iterdir():
        path.write_text('{')
    with pytest.raises(UserError, match=r'no annotations of .*; 2 JSON files that cannot be read: .*train\.json'):
        read(coco)
    (voc / 'notes.json').write_text('{')
    assert '1 JSON files that cannot be read: left out' in read(voc)[2][1]


def test_more_json_files_than_splits_are_the_reason(coco):
    for number in range(49):
        (coco / f'{number}.json').write_text('{}')
    with pytest.raises(UserError, match=r'; 51 JSON files, more than COCO has splits: not read, .*0\.json'):
        read(coco)


def test_coco_files_may_number_their_categories_as_they_like(coco):
    """The files are matched by name; ids may be texts, count from 0, and iscrowd may be missing."""
    path = coco / 'annotations' / 'val.json'
    before, _, _ = read(coco)
    content = json.loads(path.read_text())
    moved = {1: 30, 2: 10, 3: 20}
    for category in content['categories']:
        category['id'] = moved[category['id']]
    for i, annotation in enumerate(content['annotations']):
        annotation.update(id=i, category_id=str(moved[annotation['category_id']]), image_id=f'{annotation["image_id"]}')
        del annotation['iscrowd'], annotation['area']
    path.write_bytes(json.dumps(content).encode('utf-16'))
    after, classes, _ = read(coco)
    assert classes == list(CLASSES)
    assert after == before


def test_classes_keep_the_order_of_the_data_set(tmp_path, objects):
    order = ('fish', 'cat', 'dog')
    coco = write_coco(tmp_path / 'coco', objects, SPLITS)
    chosen = {stem: objects[stem] for stem in SPLITS['train']}
    (coco / 'annotations' / 'train.json').write_text(json.dumps(coco_content(chosen, categories=order)))
    yolo = write_yolo(tmp_path / 'yolo', objects, SPLITS)
    path = yolo / 'data.yaml'
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {'names': list(order)}))
    for source in (coco, yolo):
        splits, classes, _ = read(source)
        assert classes == list(order)
        categories = [written(images, classes, common_folder(splits))['categories'] for images in splits.values()]
        assert categories == [[{'id': i, 'name': name} for i, name in enumerate(order, 1)]] * 2


def test_exif_turns_the_size(tmp_path, objects):
    root = write_voc(tmp_path / 'a', objects)
    path = root / 'JPEGImages' / 'img_00.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
    splits, _, lines = read(root)
    assert lines[1].startswith('1 images that their EXIF data rotate, but not their boxes: left out')
    edit_voc(root, 'img_00', f'<width>{SIZE[0]}</width><height>{SIZE[1]}', f'<width>{SIZE[1]}</width><height>{SIZE[0]}')
    splits, _, lines = read(root)
    (turned,) = (image for images in splits.values() for image in images if image.path.stem == 'img_00')
    assert turned.size == SIZE[::-1]


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_the_measured_size_is_the_loaded_one(suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f'a.{suffix}'
    Image.new('RGB', SIZE).save(path, exif=exif)
    loaded = LoadImageFromFile()({'img_path': str(path)})['img'].shape[1::-1]
    assert measured(path, (None, None), Account()) == size_of(path) == loaded
    assert measured(path, loaded, Account()) == loaded
    assert as_loaded(path).size == loaded


def test_classes_can_be_chosen(coco):
    splits, classes, lines = read(coco, classes=['fish', 'cat'])
    assert classes == ['fish', 'cat']
    assert {box.label for images in splits.values() for image in images for box in image.boxes} == {'fish', 'cat'}
    assert 'objects of a class that --classes leaves out: left out' in lines[1]


def empty_folder(root):
    root.mkdir()


def images_alone(root):
    write_images(root, made_objects())


def two_forms(root):
    write_voc(root, made_objects())
    write_labels(root / 'labels', made_objects())


def two_files_of_one_split(root):
    write_coco(root, made_objects(), SPLITS)
    shutil.copy(root / 'annotations' / 'train.json', root / 'annotations' / 'train_v2.json')


def two_images_for_an_annotation(root):
    write_voc(root, made_objects())
    write_images(root / 'drawn', made_objects())


def nothing_annotated(root):
    write_voc(root, dict.fromkeys(made_objects(), ()))


def two_categories_of_one_name(root):
    write_coco(root, made_objects(), SPLITS)
    path = root / 'annotations' / 'train.json'
    path.write_text(path.read_text().replace('"dog"', '"cat"'))


def wrong_number_of_classes(root):
    write_yolo(root, made_objects(), SPLITS)
    path = root / 'data.yaml'
    path.write_text(f'{path.read_text()}nc: 4\n')


def broken_yaml(root):
    write_yolo(root, made_objects(), SPLITS)
    (root / 'data.yaml').write_text('names: [a\n')


def category_of_two_lines(root):
    write_coco(root, made_objects(), SPLITS)
    path = root / 'annotations' / 'train.json'
    content = json.loads(path.read_text())
    content['categories'][0] = 'a\nb'
    path.write_text(json.dumps(content))


def nothing_to_validate(root):
    write_yolo(root, made_objects(), SPLITS)
    for path in (root / 'labels' / 'val').iterdir():
        path.write_text('')


def one_image(root):
    write_voc(root, made_objects(1))


def images_in_pixels(root):
    write_yolo(root, made_objects(), SPLITS)
    for path in (root / 'labels').rglob('*.txt'):
        path.write_text('0 30 20 10 10\n')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda root: None, 'data set is not there'),
        (empty_folder, 'no images'),
        (images_alone, 'no annotations of COCO'),
        (two_forms, 'forms voc and yolo: choose one with --form'),
        (two_files_of_one_split, 'may both be the train set'),
        (two_images_for_an_annotation, 'remove one of them, or name the folder with --images'),
        (nothing_annotated, 'no object is left to train on'),
        (two_categories_of_one_name, "the name 'cat': rename one in"),
        (wrong_number_of_classes, 'nc is 4, but names has 3'),
        (broken_yaml, 'not YAML'),
        (category_of_two_lines, 'category without an id or a name'),
        (nothing_to_validate, 'no object is left in the val set'),
        (one_image, 'need two images at least'),
        (images_in_pixels, 'no object is left to train on; 8 boxes outside of their image: left out'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(make, message, tool, tmp_path):
    make(tmp_path / 'data')
    status, _, err = tool('own_dataset', tmp_path / 'data', '--out', tmp_path / 'out')
    assert status == 2
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    assert message in err
    assert not (tmp_path / 'out').exists()


def test_the_output_folder_is_not_overwritten(voc, tool, tmp_path):
    (tmp_path / 'out').mkdir()
    status, _, err = tool('own_dataset', voc, '--out', tmp_path / 'out')
    assert (status, err.count('\n')) == (2, 1)
    assert 'output folder is there already' in err


@pytest.fixture(scope='module')
def own_config(tmp_path_factory):
    """Data, their config, and the lines about both; the one whose training steps are timed."""
    folder = tmp_path_factory.mktemp('own_config')
    source = write_coco(folder / 'coco', made_objects(), SPLITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lines = list(OwnDatasetJob(source, size=(64, 48)).run(ROOT / 'tools'))
    return source, folder / 'own_datasets' / 'coco_scconv_r18' / 'coco_scconv_r18.py', lines


def test_the_config_says_what_the_data_are(own_config):
    source, path, lines = own_config
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.type == 'SCConvResNet'
    assert cfg.model.bbox_head.num_classes == 3
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == CLASSES
    assert cfg.train_dataloader.dataset.ann_file == str(path.with_name('train.json'))
    types = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert types.index('FilterAnnotations') == types.index('LoadAnnotations') + 1
    assert [next(step for step in pipeline if step.type == 'Resize').scale for pipeline in (
        cfg.train_dataloader.dataset.pipeline, cfg.val_dataloader.dataset.pipeline)] == [(64, 48)] * 2  # fmt: skip
    assert cfg.data_root == f'{source}/'
    assert path.with_name('sheet.png').stat().st_size > 10_000
    assert re.search(r'iterations of \d+\.\d\d s and validations of \d+ s, as measured now on ', lines[-3])
    assert f'train.py {Path("own_datasets") / path.parent.name / path.name}' in lines[-2]
    assert 'report.py work_dirs/coco_scconv_r18' in lines[-1]


def test_the_config_is_short_and_well_formed(own_config):
    _, path, _ = own_config
    assert len(path.read_text().splitlines()) < 40
    compile(path.read_text(), path, 'exec')


def test_the_twin_has_the_same_data(own_config, tool, tmp_path, monkeypatch):
    source, path, _ = own_config
    monkeypatch.chdir(tmp_path)
    status, _, err = tool('own_dataset', source, '--size', '64x48', '--baseline')
    assert status == 0, err
    twin = tmp_path / 'own_datasets' / 'coco_r18' / 'coco_r18.py'
    assert Config.fromfile(twin).model.backbone.type == 'ResNet'
    for name in ('train.json', 'val.json'):
        assert twin.with_name(name).read_bytes() == path.with_name(name).read_bytes()


@pytest.mark.parametrize('source', ['VOCdevkit', 'coco'])
def test_published_data_sets_pass_through(source, published, tool, tmp_path):
    status, _, err = tool('own_dataset', published(source), '--out', tmp_path / 'out', '--size', '64x48')
    assert status == 0, err
    train = json.loads((tmp_path / 'out' / 'train.json').read_text())
    val = json.loads((tmp_path / 'out' / 'val.json').read_text())
    assert (len(train['images']), len(val['images'])) == {'VOCdevkit': (97, 52), 'coco': (128, 64)}[source]
    assert train['categories'] == val['categories']
    assert len(train['categories']) == {'VOCdevkit': 19, 'coco': 80}[source]


@pytest.mark.parametrize('source', ['VOCdevkit', 'coco'])
def test_real_images_pass_through(source, real_data, tool, tmp_path):
    status, _, err = tool('own_dataset', real_data / source, '--out', tmp_path / 'out', '--size', '64x48')
    assert status == 0, err
    want = list({'VOCdevkit': VOC_IMAGES, 'coco': COCO_IMAGES}[source].values())
    for split, count in (('train', want[0] + sum(want[2:])), ('val', want[1])):
        content = json.loads((tmp_path / 'out' / f'{split}.json').read_text())
        assert len(content['images']) == count
        # Three digits in each image, none of them lost, clipped or merged.
        assert len(content['annotations']) == 3 * count


@pytest.mark.parametrize('backbone', ['r50', 'r101'])
def test_large_backbones(backbone, coco, tool, tmp_path):
    status, _, err = tool('own_dataset', coco, '--out', tmp_path / 'out', '--backbone', backbone, '--init',
                          'torchvision://resnet50', '--baseline')  # fmt: skip
    assert status == 0, err
    cfg = Config.fromfile(tmp_path / 'out' / 'out.py')
    assert cfg.model.backbone.depth == int(backbone[1:])
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


@pytest.mark.parametrize(
    ('init', 'of_backbone'),
    [
        ('torchvision://resnet50', True),
        ('open-mmlab://detectron2/resnet50_caffe', True),
        ('https://a.b/resnet50_classifier.pth', False),  # of a whole model: its keys begin with backbone.
        ('s3://bucket/detector.pth', False),
    ],
)
def test_weights_to_start_from(init, of_backbone, coco, tool, tmp_path):
    status, _, err = tool('own_dataset', coco, '--out', tmp_path / 'out', '--backbone', 'r50', '--init', init)
    assert status == 0, err
    cfg = Config.fromfile(tmp_path / 'out' / 'out.py')
    assert (cfg.get('load_from') == init) is not of_backbone
    assert ((cfg.model.backbone.get('init_cfg') or {}).get('checkpoint') == init) is of_backbone


def test_quotes_in_the_path_of_the_config(coco, tool, tmp_path):
    out = tmp_path / 'Anna\'s "cells"' / 'new'
    status, _, err = tool('own_dataset', coco, '--out', out)
    assert status == 0, err
    cfg = Config.fromfile(out / 'new.py')
    assert cfg.train_dataloader.dataset.ann_file == cfg.here + 'train.json' == str(out / 'train.json')


@pytest.mark.parametrize(
    ('error', 'reason'),
    [(RuntimeError('CUDA out of memory'), 'CUDA out of memory'), (KeyboardInterrupt(), 'KeyboardInterrupt')],
    ids=['memory', 'Ctrl-C'],
)
def test_files_stay_if_steps_cannot_be_timed(error, reason, coco, tool, tmp_path, monkeypatch):
    def fail(config):
        raise error

    monkeypatch.setattr(job, 'time_steps', fail)
    status, out, err = tool('own_dataset', coco, '--out', tmp_path / 'out')
    assert status == 0, err
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'out.py', 'train.json', 'val.json', 'sheet.png'}
    *_, note, following, train, report = out.splitlines()
    assert note == f'note: training steps could not be timed: {reason}'
    assert following == 'next:'
    assert train.endswith(f'train.py {tmp_path}/out/out.py') and report.endswith('report.py work_dirs/out')


def some_images(count, size=(640, 480), side=100):
    boxes = [Box('a', (0, 0, side, side))]
    return [AnnotatedImage(Path(f'{i}.png'), size, list(boxes)) for i in range(count)]


def test_the_recipe_follows_the_data():
    recipe = choose_recipe(some_images(292))
    assert (recipe.size, recipe.batch, recipe.epochs, recipe.iterations) == ((320, 240), 16, 33, 627)
    assert choose_recipe(some_images(292), size=(96, 64)).size == (96, 64)
    assert choose_recipe(some_images(10_000)).epochs == 12
    few = choose_recipe(some_images(12))
    assert (few.batch, few.epochs) == (2, 300)
    assert few.lr < recipe.lr
    assert choose_recipe(some_images(292, side=16)).size == (512, 384)  # 12.8 pixels a side there
    assert choose_recipe(some_images(292, size=(100, 200))).size == (100, 200)
    assert choose_recipe(some_images(292, size=(1000, 1000), side=900)).levels > recipe.levels


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=8), st.just(1e308),
    st.lists(st.integers(-3, 90), max_size=5), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
MANY = 250


def require_some_of_each(change_and_ask):
    """Neither is everything refused, nor is every change too small for a note."""
    found = outcomes(st.data(), change_and_ask, MANY)
    assert found['read in part'] >= 0.2 * found.total() and found['refused'] <= 0.8 * found.total()


def require_sound(source):
    """The data set is refused in one line, or what is written are boxes inside of their images; say which it was."""
    try:
        splits, classes, (_, *notes) = read(source)
    except UserError as error:
        if '\n' in str(error):
            pytest.fail(f'more than one line: {error}')
        return 'refused'
    for images in splits.values():
        content = written(images, classes, common_folder(splits))
        json.loads(json.dumps(content, allow_nan=False))
        sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
        for annotation in content['annotations']:
            x, y, width, height = annotation['bbox']
            limits = sizes[annotation['image_id']]
            assert x >= 0 and y >= 0 and width > 1 and height > 1
            assert x + width <= limits[0] + 1e-6 and y + height <= limits[1] + 1e-6
            assert 1 <= annotation['category_id'] <= len(classes)
    return 'read in part' if notes else 'read'


@pytest.fixture(scope='module')
def odd_sets(tmp_path_factory):
    root = tmp_path_factory.mktemp('odd')
    objects = made_objects(3)
    splits = {'train': STEMS[:2], 'val': STEMS[2:3]}
    return (
        write_voc(root / 'voc', objects, splits),
        write_coco(root / 'coco', objects, splits),
        write_yolo(root / 'yolo', objects, splits),
    )


def test_odd_coco_files(odd_sets):
    require_some_of_each(lambda data: outcome_of_coco(odd_sets[1], data))


def outcome_of_coco(root, data):
    content = coco_content({stem: made_objects(3)[stem] for stem in STEMS[:2]})
    part = data.draw(st.sampled_from([None, *content]))
    if part is None:
        content[data.draw(st.sampled_from(list(content)))] = data.draw(ODD)
    else:
        entry = content[part][0]
        key = data.draw(st.sampled_from([None, *entry]))
        if key is None:
            content[part][0] = data.draw(ODD)
        elif data.draw(st.booleans()):
            del entry[key]
        elif key == 'bbox' and data.draw(st.booleans()):
            entry[key][data.draw(st.integers(0, 3))] = data.draw(ODD)
        else:
            entry[key] = data.draw(ODD)
    (root / 'annotations' / 'train.json').write_text(json.dumps(content))
    return require_sound(root)


WORDS = st.one_of(
    st.sampled_from(['', 'nan', 'inf', '-1', '1e400', '0', '1.5', '  ', 'x', '0.5', '\u0661', '1_0', '64', '-0.0']),
    st.text(st.characters(codec='utf-8', exclude_characters='<&\r'), max_size=6),
)


def test_odd_voc_files(odd_sets):
    require_some_of_each(lambda data: outcome_of_voc(odd_sets[0], data))


def outcome_of_voc(root, data):
    tags = ['name', 'difficult', 'xmin', 'ymin', 'xmax', 'ymax', 'bndbox', 'object', 'size', 'width', 'filename']
    path = root / 'Annotations' / 'img_00.xml'
    tree = ElementTree.fromstring(
        '<annotation><filename>img_00.png</filename><size><width>64</width><height>48</height></size><object>'
        '<name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax>'
        '</bndbox></object></annotation>'
    )
    tag = data.draw(st.sampled_from(tags))
    parent = next(node for node in tree.iter() if node.find(tag) is not None)
    node = parent.find(tag)
    change = data.draw(st.sampled_from(['text', 'drop', 'twice', 'cut']))
    if change == 'drop':
        parent.remove(node)
    elif change == 'twice':
        parent.append(node)
    else:
        node.text = data.draw(WORDS)
    content = ElementTree.tostring(tree, encoding=data.draw(st.sampled_from(['utf-8', 'utf-16', 'us-ascii'])))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if change == 'cut' else content)
    return require_sound(root)


def test_odd_yolo_files(odd_sets):
    require_some_of_each(lambda data: outcome_of_yolo(odd_sets[2], data))


def outcome_of_yolo(root, data):
    values = ['0', '0.5', '0.5', '0.25', '0.25']
    for _ in range(data.draw(st.integers(1, 2))):
        values[data.draw(st.integers(0, 4))] = data.draw(WORDS)
    values += data.draw(st.lists(WORDS, max_size=4))
    (root / 'labels' / 'train' / 'img_00.txt').write_text(' '.join(values), encoding='utf-8')
    names = dict(enumerate(CLASSES))
    settings = dict(path='.', names=names, nc=3, train='images/train', val='images/val')
    if data.draw(st.booleans()):
        settings[data.draw(st.sampled_from(list(settings)))] = data.draw(ODD)
    if data.draw(st.booleans()):
        names[data.draw(st.integers(0, 3))] = data.draw(ODD)
    (root / 'data.yaml').write_text(yaml.safe_dump(settings))
    return require_sound(root)
