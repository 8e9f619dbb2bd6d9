"""tools/report.py: the numbers against cases worked out by hand, and the page in a browser."""

import base64
import html
import importlib.util
import io
import json
import re
import shutil
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from helpers.paths import ROOT
from helpers.running_tools import ONE_WORKER
from mmscconv.benchmark import machine
from mmscconv.complexity import count
from mmscconv.errors import UserError
from mmscconv.report import figures
from mmscconv.report.cost import parts
from mmscconv.report.drawing import draw
from mmscconv.report.evaluation import ClassResult, evaluate
from mmscconv.report.matching import best_threshold, confusion, match, worst
from mmscconv.report.page import render
from mmscconv.report.run_dir import find_checkpoint, find_config

CAT, DOG = 3, 7  # category ids


def truth(*objects):
    """COCO of (image, category, x, iscrowd); every box is 40 pixels wide and high."""
    content = dict(
        images=[dict(id=i, width=400, height=100) for i in (1, 2)],
        categories=[dict(id=CAT, name='cat'), dict(id=DOG, name='dog')],
        annotations=[
            dict(id=i, image_id=image, category_id=category, bbox=[x, 0, 40, 40], area=1600, iscrowd=crowd)
            for i, (image, category, x, crowd) in enumerate(objects, 1)
        ],
    )
    result = COCO()
    result.dataset = content
    result.createIndex()
    return result


def predictions(objects, found):
    """The report's input, of predictions (image, category, x, score)."""
    return SimpleNamespace(
        truth=truth(*objects),
        found=[dict(image_id=i, category_id=c, bbox=[x, 0, 40, 40], score=score) for i, c, x, score in found],
        class_ids=[CAT, DOG],
        image_ids=[1, 2],
        most=[1, 10, 100],
    )


@pytest.fixture
def case():
    """Cats at 0 and 100, and a crowd of dogs at 200, in image 1; a dog at 0 in image 2."""
    objects = [(1, CAT, 0, 0), (1, CAT, 100, 0), (1, DOG, 200, 1), (2, DOG, 0, 0)]
    found = [
        (1, CAT, 0, 0.9),
        (1, CAT, 300, 0.8),  # false
        (1, DOG, 100, 0.7),  # a cat
        (1, DOG, 200, 0.65),  # on the crowd
        (2, DOG, 8, 0.6),  # IoU 2/3
        (2, CAT, 200, 0.1),  # false, and below the threshold
    ]
    return predictions(objects, found)


def test_the_numbers_are_coco_s(case):
    result = evaluate(case, ['cat', 'dog'])
    cat, dog = result.classes
    # One of two cats is found first: precision 1 up to recall 0.5, which is 51 of 101 points.
    assert cat.values[:3] == pytest.approx([51 / 101] * 3)
    # The dog comes second, behind a false one: precision 1/2 at every recall, at four of ten IoU thresholds.
    assert dog.values[:3] == pytest.approx([0.2, 0.5, 0])
    assert result.values[:3] == pytest.approx([(51 / 101 + ap) / 2 for ap in (0.2, 0.5, 0)])
    assert (cat.objects, dog.objects) == (2, 1)
    assert cat.values[3] is None  # no object is below 32 pixels
    assert cat.values[4] == pytest.approx(51 / 101)
    np.testing.assert_allclose(cat.curve, [1] * 51 + [0] * 50)


def test_classes_in_another_order_than_their_ids(case):
    case.class_ids = [DOG, CAT]
    dog, cat = evaluate(case, ['dog', 'cat']).classes
    assert (dog.name, dog.objects, cat.name, cat.objects) == ('dog', 1, 'cat', 2)
    assert cat.values[1] == pytest.approx(51 / 101) and dog.values[1] == pytest.approx(0.5)


def test_matches_are_made_across_classes(case):
    threshold = best_threshold(case)
    assert threshold == pytest.approx(0.6)  # three objects; 2 hits of 4 that count give 4/7, 1 of 1 gives 2/4
    verdicts = match(case, threshold)
    counts = [(len(v.hits), len(v.confused), len(v.missed), len(v.false)) for v in verdicts]
    assert counts == [(1, 1, 0, 1), (1, 0, 0, 0)]
    np.testing.assert_array_equal(confusion(verdicts, case.class_ids), [[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    assert [v.image_id for v in worst(verdicts, 5)] == [1]


def test_what_no_prediction_overlaps_is_missed(case):
    verdicts = match(case, 0.85)
    assert [len(v.missed) for v in verdicts] == [1, 1]
    np.testing.assert_array_equal(confusion(verdicts, case.class_ids), [[1, 0, 1], [0, 0, 1], [0, 0, 0]])


def test_without_a_prediction():
    data = predictions([(1, CAT, 0, 0)], [])
    result = evaluate(data, ['cat', 'dog'])
    assert result.values[:3] == [0, 0, 0]
    assert result.classes[1].values[0] is None
    assert best_threshold(data) == 1
    assert [len(v.missed) for v in match(data, 1)] == [1, 0]


@pytest.fixture
def drawn(monkeypatch):
    """Figures as matplotlib holds them, in place of images."""
    monkeypatch.setattr(figures, 'as_image', lambda figure: figure)


def test_shares_of_many_classes_are_of_all_predictions(drawn):
    """Class 0 is taken for class 13 more often than it is found; class 13 is not shown by itself."""
    classes = [f'c{i}' for i in range(14)]
    counts = np.diag(np.full(15, 10.0))
    for i in range(12):
        counts[i, (i + 1) % 12] = 5
    counts[0, 13] = counts[12, 13] = 1
    counts[0, 14] = 4
    counts[14, 14] = 0
    axes = figures.confusion_matrix(counts, classes).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [*classes[:12], '2 others', 'nothing'] == [label.get_text() for label in axes.get_xticklabels()]
    shares = axes.images[0].get_array()
    assert shares[0, 0] == 10 / 20 and shares[0, 12] == 1 / 20 and shares[0, 13] == 4 / 20
    assert shares[12, 12] == 1  # 12 as 13 stays within the others
    np.testing.assert_allclose(shares[:13].sum(axis=1), 1)


def test_few_classes_are_shown_as_they_are(drawn):
    axes = figures.confusion_matrix(np.array([[3.0, 1, 0], [0, 2, 2], [1, 0, 0]]), ['a', 'b']).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0.5, 0.5], [1, 0, 0]])


def test_every_curve_has_a_name(drawn):
    """matplotlib leaves out labels that begin with an underscore."""
    classes = [ClassResult(name, 3, [0.5] * 6, np.ones(101)) for name in ('_background_', 'cat')]
    legend = figures.precision_recall(classes).axes[0].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ['_background_ 0.50', 'cat 0.50', 'mean']


def test_the_page_says_what_it_leaves_out():
    evaluation = SimpleNamespace(values=[None] * 6, classes=[])
    nothing = dict.fromkeys(('precision_recall', 'counted', 'timing', 'curves', 'gates', 'confusion', 'legend'))
    contents = dict(
        nothing, name='run', checkpoint='a.pth', images=2, objects=3, columns=['AP'] * 6, evaluation=evaluation,
        threshold=0.5, iou=0.5, totals=dict.fromkeys(('hits', 'confused', 'missed', 'false'), 0), drawn=[], facts={},
        left_out=[], config='', gate_batches=8,
    )  # fmt: skip
    page = ' '.join(render(**contents, of_images=50, shown=12, classes=80).split())
    assert '2 of 50 images' in page and 'The 12 of 80 classes that are confused most' in page
    page = ' '.join(render(**contents, of_images=2, shown=3, classes=3).split())
    assert ': 2 images' in page and 'confused most' not in page


@pytest.fixture(scope='module')
def report(digits_run, tmp_path_factory):
    """The page on one epoch of the demo, with every box that it gives, however low its score."""
    from helpers.running_tools import ONE_WORKER, run_tool

    folder = tmp_path_factory.mktemp('report')
    work_dir = folder / 'judged'
    shutil.copytree(digits_run, work_dir)
    done = run_tool('report.py', work_dir, '--worst', 3, options=[*ONE_WORKER, 'model.test_cfg.score_thr=0.0'],
                    cwd=folder)  # fmt: skip
    return work_dir, (work_dir / 'report.html').read_text(), done.text


def test_the_page_has_every_section(report):
    _, page, _ = report
    sections = [html.unescape(text) for text in re.findall('<h2>(.*?)</h2>', page)]
    assert sections == [
        'By class and size', 'Precision and recall', 'Confusion matrix', 'Training and validation',
        'Informative positions of each SRU', 'Cost', 'Worst images', 'Versions and machine',
    ]  # fmt: skip
    assert 'Left out' not in page
    assert page.count('<figure>') == 3
    assert "type='SCConvResNet'" in html.unescape(page)


def test_the_page_says_what_the_evaluator_says(report):
    work_dir, page, text = report
    printed = re.findall(r'bbox_mAP_copypaste: ([\d.\- ]+)', text)[-1].split()
    row = re.search(r'<tr><th>all</th><th>\d+</th>(.*?)</tr>', page).group(1)
    shown = [-1.0 if value == 'n/a' else float(value) for value in re.findall('<th>(.*?)</th>', row)]
    assert shown == pytest.approx([float(value) for value in printed])
    found = json.loads((work_dir / 'report' / 'predictions.bbox.json').read_text())
    assert len(found) > 100


def test_the_run_is_left_as_it_was(report, digits_run):
    work_dir, _, _ = report
    for path in digits_run.rglob('*'):
        if path.is_file():
            assert (work_dir / path.relative_to(digits_run)).read_bytes() == path.read_bytes()


def test_the_page_needs_no_network(report):
    _, page, _ = report
    assert set(re.findall(r'(?:src|href)="(\w+):', page)) == {'data'}
    assert '<script' not in page
    assert 'url(' not in page


def test_a_part_of_the_images_is_judged_alone(digits_run, tool, tmp_path):
    """mmdet's evaluator counts every image of the annotation file, tested or not."""
    folder = tmp_path / 'run'
    shutil.copytree(digits_run, folder)
    part = [*ONE_WORKER, 'val_dataloader.dataset.indices=2', 'model.test_cfg.score_thr=0.0']
    status, out, err = tool('report', folder, '--worst', 9, '--cfg-options', *part)
    assert status == 0, err
    assert 'judged: 2 of 4 images' in out
    page = (folder / 'report.html').read_text()
    assert 'on the validation set: 2 of 4 images' in page and page.count('<figure>') == 2


def test_what_is_missing_is_said(report, tool, tmp_path):
    """A plain model without a log of its training."""
    from mmengine.config import Config

    from helpers.running_tools import ONE_WORKER

    source = report[0]
    (tmp_path / 'run').mkdir()
    cfg = Config.fromfile(source / 'retinanet_scconv_r18_digits.py')
    twin = Config.fromfile(ROOT / 'configs' / 'retinanet_r18_digits.py')
    cfg.model = twin.model
    cfg.dump(tmp_path / 'run' / 'plain.py')
    save_weights(cfg, tmp_path / 'run' / 'epoch_1.pth')
    status, out, err = tool('report', tmp_path / 'run', '--worst', 1, '--cfg-options', *ONE_WORKER)
    assert status == 0, err
    said = [line for line in out.splitlines() if line.startswith('left out: ')]
    assert [line.split(':')[1].strip() for line in said] == ['shares of informative positions', 'training curves']
    page = (tmp_path / 'run' / 'report.html').read_text()
    assert 'the model has no SRU' in page
    assert 'Informative positions of each SRU' not in page


def save_weights(cfg, path):
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmdet')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, path)


def test_the_parts_add_up(digits_run):
    """mmdet calls a head's forward without hooks; its convolutions alone give the same count."""
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    import mmscconv.models  # noqa: F401

    cfg = Config.fromfile(digits_run / 'retinanet_scconv_r18_digits.py')
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    sample = DetDataSample(metainfo=dict(img_shape=(128, 128)))
    image = {'inputs': torch.zeros(3, 128, 128, dtype=torch.uint8), 'data_samples': sample}
    by_name, shape = parts(model, [image])
    assert shape == (128, 128)
    assert by_name['backbone'].macs == count(model.backbone, shape).macs
    whole = by_name.pop('all')
    assert sum(part.macs for part in by_name.values()) == whole.macs
    assert sum(part.params for part in by_name.values()) == sum(p.numel() for p in model.parameters())
    per_cell = sum(layer.weight.numel() for layer in model.bbox_head.modules() if isinstance(layer, torch.nn.Conv2d))
    assert by_name['head'].macs == per_cell * (16 * 16 + 8 * 8 + 4 * 4)


@pytest.mark.parametrize(
    ('shape', 'turned', 'size'),
    [
        ((40, 20), True, (20, 40)),  # as the EXIF data say
        ((20, 40), True, (40, 20)),  # loaded without them, as some backends do
        ((20, 40), False, (40, 20)),
    ],
)
def test_images_are_drawn_as_they_were_loaded(shape, turned, size, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new('RGB', (40, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    nothing = SimpleNamespace(hits=[], missed=[], false=[], confused=[])
    uri = draw(str(tmp_path / 'turned.jpg'), nothing, {}, shape, turned)
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))
    assert picture.width / picture.height == size[0] / size[1]


def test_a_test_leaves_the_training_s_config(digits, digits_run, tool, tmp_path):
    """The page would otherwise judge with the settings of the test."""
    folder = tmp_path / 'run'
    shutil.copytree(digits_run, folder)
    config = find_config(folder)
    before = config.read_text()
    options = [*ONE_WORKER, 'model.test_cfg.score_thr=0.3']
    status, _, error = tool('test', config, folder / 'epoch_1.pth', '--work-dir', folder, '--cfg-options', *options)
    assert status == 0, error[-2000:]
    assert config.read_text() == before and list(folder.glob('*.py')) == [config]
    (tested,) = folder.glob(f'*/{config.name}')
    assert 'score_thr=0.3' in tested.read_text()


def test_a_package_of_another_name_has_a_version_or_none(monkeypatch):
    """onnxruntime-gpu is imported as onnxruntime; ncnn is not there."""

    def unknown(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, 'version', unknown)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'ncnn' else object())
    facts = machine.environment(torch.device('cpu'))
    assert (facts['onnxruntime'], facts['ncnn']) == ('version unknown', 'not installed')


def test_the_newest_config_and_the_last_checkpoint(tmp_path):
    with pytest.raises(UserError, match='work dir is not there'):
        find_config(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='no config'):
        find_config(tmp_path)
    with pytest.raises(UserError, match='no checkpoint'):
        find_checkpoint(tmp_path)
    for name in ('epoch_2.pth', 'epoch_1.pth'):
        (tmp_path / name).touch()
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/before/epoch_2.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_2.pth'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda folder: (folder / 'epoch_1.pth').write_bytes(b'no checkpoint'), 'checkpoint cannot be read'),
        (lambda folder: (folder / 'a.py').write_text("default_scope = 'mmpretrain'\n"), 'needs a detector'),
    ],
)
def test_errors_are_one_line(change, message, digits_run, tool, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(digits_run, folder)
    change(folder)
    status, _, err = tool('report', folder)
    assert status == 2
    assert [line for line in err.splitlines() if line.startswith('error: ')]
    assert message in err.splitlines()[-1]
    assert not (folder / 'report.html').exists()
