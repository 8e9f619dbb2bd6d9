"""Every tool as a subprocess, on real images."""

import json
import pickle
import shutil
import socket

import cv2
import numpy as np
import pytest
import torch

from helpers.once import made_once, shared_folder
from helpers.paths import ROOT
from helpers.running_tools import NARROW, NARROW_DETECTOR, ONE_WORKER, SMALL_TEST, SMALL_TRAIN, run_tool, start_tool

CONFIGS = ROOT / 'configs'
SCALE = '(160,128)'
DETECTOR = [*NARROW_DETECTOR, *ONE_WORKER, *SMALL_TRAIN, *SMALL_TEST, 'train_dataloader.dataset.indices=8']
SMALL_IMAGES = [
    f'{s}_dataloader.dataset.pipeline.{i}.scale={SCALE}' for s, i in (('train', 2), ('val', 1), ('test', 1))
]


def loss_values(work_dir):
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [record['loss'] for record in map(json.loads, lines) if 'loss' in record]


@pytest.fixture(scope='module')
def coco_run(real_data, tmp_path_factory):
    """A detector trained for two iterations on real COCO images."""

    def train(folder):
        done = run_tool(
            'train.py', CONFIGS / 'retinanet_scconv_r50_coco.py', '--data-root', real_data / 'coco',
            '--work-dir', folder / 'run', options=[*DETECTOR, *SMALL_IMAGES],
        )  # fmt: skip
        (folder / 'printed').write_text(done.text)

    folder = made_once(tmp_path_factory, 'coco_run', train)
    return folder / 'run', (folder / 'printed').read_text()


def test_train_on_coco(coco_run):
    work_dir, text = coco_run
    assert (work_dir / 'iter_2.pth').is_file()
    assert len(loss_values(work_dir)) == 2
    lines = next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert json.loads(lines[-1])['step'] == 2  # of the validation
    assert np.isfinite(loss_values(work_dir)).all()
    assert 'coco/bbox_mAP' in text
    assert 'eta' in text
    assert 'Total batch 2, but the learning rate is meant for 16' in text


def test_resume_goes_on_where_it_stopped(coco_run, real_data, tmp_path):
    work_dir, _ = coco_run
    shutil.copy(work_dir / 'iter_2.pth', tmp_path)
    done = run_tool(
        'train.py', CONFIGS / 'retinanet_scconv_r50_coco.py', '--data-root', real_data / 'coco', '--auto-scale-lr',
        '--work-dir', tmp_path, '--resume', tmp_path / 'iter_2.pth',
        options=[*DETECTOR, *SMALL_IMAGES, 'train_cfg.max_iters=3', 'train_cfg.val_interval=100'],
    )  # fmt: skip
    assert 'Iter(train) [3/3]' in done.text
    assert 'Iter(train) [2/3]' not in done.text
    assert 'Total batch' not in done.text and 'Scaling the original LR' not in done.text
    assert '--auto-scale-lr has no effect: a resumed training goes on with the learning rate of ' in done.text


@pytest.fixture(scope='module')
def coco_test(coco_run, real_data):
    work_dir, _ = coco_run
    done = run_tool(
        'test.py', CONFIGS / 'retinanet_scconv_r50_coco.py', work_dir / 'iter_2.pth', '--data-root', real_data / 'coco',
        '--work-dir', work_dir / 'test', '--show-dir', 'drawn', '--out', work_dir / 'test' / 'results.pkl', '--tta',
        options=[*NARROW_DETECTOR, *ONE_WORKER, *SMALL_TEST, 'tta_pipeline.1.transforms.0.0.scale=(160,128)',
                 'tta_pipeline.1.transforms.0.1.scale=(96,64)', 'tta_pipeline.1.transforms.0.2.scale=(192,160)',
                 'model.test_cfg.score_thr=0.0'],
    )  # fmt: skip
    return work_dir / 'test', done.text


def test_test_prints_draws_and_writes(coco_test):
    work_dir, text = coco_test
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in text
    assert len(list(work_dir.glob('*/drawn/*.jpg'))) == 3
    results = pickle.loads((work_dir / 'results.pkl').read_bytes())
    assert len(results) == 3
    assert results[0]['pred_instances']['bboxes'].shape[1] == 4


def test_voc(real_data, tmp_path):
    pipelines = [f'{s}_dataloader.dataset.pipeline.1.scale={SCALE}' for s in ('val', 'test')]
    pipelines += [f'train_dataloader.dataset.dataset.datasets.{i}.pipeline.2.scale={SCALE}' for i in (0, 1)]
    options = [o for o in DETECTOR if not o.startswith('train_dataloader.dataset')]
    done = run_tool(
        'train.py', CONFIGS / 'retinanet_scconv_r50_voc.py', '--data-root', real_data / 'VOCdevkit',
        '--work-dir', tmp_path, options=[*options, *pipelines, 'model.test_cfg.score_thr=0.0'],
    )  # fmt: skip
    assert 'voc/bbox_mAP_50:' in done.text
    assert 'voc/bbox_mAP_75:' in done.text
    assert np.isfinite(loss_values(tmp_path)).all()
    scales = [f'tta_pipeline.1.transforms.0.{i}.scale=(96,64)' for i in range(3)]
    done = run_tool(
        'test.py', CONFIGS / 'retinanet_scconv_r50_voc.py', tmp_path / 'iter_2.pth', '--data-root',
        real_data / 'VOCdevkit', '--work-dir', tmp_path, '--tta',
        options=[*NARROW_DETECTOR, *ONE_WORKER, *SMALL_TEST, *scales, 'model.test_cfg.score_thr=0.0'],
    )  # fmt: skip
    assert 'voc/bbox_mAP:' in done.text


@pytest.fixture(scope='module')
def imagenet_run(real_data, tmp_path_factory):
    """A classifier trained for one epoch on one real image a class."""
    classes = shared_folder(tmp_path_factory) / 'imagenet_run' / 'classes.txt'
    options = [
        *NARROW, *ONE_WORKER, 'train_dataloader.batch_size=20', 'train_cfg.max_epochs=1', 'model.head.in_channels=512',
        *(f'{s}_dataloader.dataset.metainfo.classes={classes}' for s in ('train', 'val', 'test')),
        'train_dataloader.dataset.pipeline.1.scale=64', 'default_hooks.logger.interval=1',
    ]  # fmt: skip

    def train(folder):
        classes.write_text('\n'.join(sorted(p.name for p in (real_data / 'imagenet_mini' / 'train').iterdir())))
        done = run_tool(
            'train.py', CONFIGS / 'scconv_resnet50_imagenet.py', '--data-root', real_data / 'imagenet_mini',
            '--work-dir', folder / 'run', options=options,
        )  # fmt: skip
        (folder / 'printed').write_text(done.text)

    folder = made_once(tmp_path_factory, 'imagenet_run', train)
    return folder / 'run', (folder / 'printed').read_text(), options


def test_imagenet_and_its_test(imagenet_run, real_data):
    work_dir, text, options = imagenet_run
    assert 'accuracy/top5' in text
    done = run_tool(
        'test.py', CONFIGS / 'scconv_resnet50_imagenet.py', work_dir / 'epoch_1.pth', '--show-dir', 'drawn',
        '--data-root', real_data / 'imagenet_mini', '--work-dir', work_dir, '--out', work_dir / 'out.pkl',
        options=options,
    )  # fmt: skip
    assert 'accuracy/top1' in done.text
    assert len(list((work_dir / 'drawn').glob('*'))) == 40
    assert len(pickle.loads((work_dir / 'out.pkl').read_bytes())) == 40


def test_classifier_checkpoint_in_the_detector(imagenet_run, real_data, tmp_path):
    checkpoint = imagenet_run[0] / 'epoch_1.pth'
    init = [
        'model.backbone.init_cfg.type=Pretrained',
        f'model.backbone.init_cfg.checkpoint={checkpoint}',
        'model.backbone.init_cfg.prefix=backbone.',
    ]
    done = run_tool(
        'train.py', CONFIGS / 'retinanet_scconv_r50_coco.py', '--data-root', real_data / 'coco', '--work-dir', tmp_path,
        options=[*DETECTOR, *SMALL_IMAGES, *init, 'train_cfg.max_iters=1', 'optim_wrapper.optimizer.lr=0.0',
                 'train_cfg.val_begin=9'],
    )  # fmt: skip
    assert 'unexpected key' not in done.text
    assert 'missing key' not in done.text
    want = torch.load(checkpoint, map_location='cpu', weights_only=False)['state_dict']
    have = torch.load(tmp_path / 'iter_1.pth', map_location='cpu', weights_only=False)['state_dict']
    weights = [k for k in want if k.startswith('backbone.') and k.endswith(('weight', 'bias'))]
    assert len(weights) > 300
    assert all(torch.equal(want[k], have[k]) for k in weights)


def test_two_processes_make_one_step(real_data, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    done = start_tool(
        'bash', ROOT / 'tools' / 'dist_train.sh', CONFIGS / 'retinanet_scconv_r50_coco.py', 2, '--data-root',
        real_data / 'coco', '--work-dir', tmp_path, '--cfg-options', *DETECTOR, *SMALL_IMAGES, 'train_cfg.max_iters=1',
        'train_cfg.val_begin=9', PORT=str(port),
    )  # fmt: skip
    assert done.returncode == 0, done.text[-4000:]
    assert 'Iter(train) [1/1]' in done.text
    assert 'GPU number: 2' in done.text
    assert (tmp_path / 'iter_1.pth').is_file()


def test_digits_are_boxed_scans_and_repeatable(digits, tmp_path):
    content = json.loads((digits / 'annotations' / 'train.json').read_text())
    assert len(content['images']) == 12
    assert [c['name'] for c in content['categories']] == list('0123456789')
    for annotation in content['annotations']:
        image = cv2.imread(str(digits / 'train' / f'{annotation["image_id"]:06d}.png'), cv2.IMREAD_GRAYSCALE)
        x, y, width, height = annotation['bbox']
        box = image[y : y + height, x : x + width]
        assert box.shape == (height, width)
        for edge in (box[0], box[-1], box[:, 0], box[:, -1]):  # the box is tight
            assert edge.max() > 64
    run_tool('make_digits.py', '--out', tmp_path, '--train', 12, '--val', 4)
    assert json.loads((tmp_path / 'annotations' / 'train.json').read_text()) == content


def test_curves_of_a_run(digits_run, tmp_path):
    done = run_tool('plot.py', 'curves', digits_run, '--out', tmp_path / 'plots' / 'curves.png')
    assert 'curves.png' in done.stdout
    assert cv2.imread(str(tmp_path / 'plots' / 'curves.png')).shape[1] > 1000
