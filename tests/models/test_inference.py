"""mmdet's inference interfaces with our configs and checkpoints, and the quickstart that shows them."""

import cv2
import numpy as np
import pytest

import mmscconv
from helpers.paths import ROOT
from helpers.running_tools import run_tool


@pytest.fixture(scope='module')
def cfg():
    cfg = mmscconv.get_config('retinanet_scconv_r18_digits')
    cfg.model.test_cfg.score_thr = 0.0  # the checkpoint has seen one iteration
    return cfg


@pytest.fixture(scope='module')
def inferencer(cfg, digits_run):
    from mmdet.apis import DetInferencer

    return DetInferencer(cfg, str(digits_run / 'epoch_1.pth'), device='cpu', show_progress=False)


def boxes(result):
    return np.array(result['bboxes'])


def test_image_folder_and_array(inferencer, cfg, digits, digits_run, tmp_path):
    from mmdet.apis import inference_detector, init_detector

    images = sorted((digits / 'val').iterdir())
    array = cv2.imread(str(images[0]))
    folder = inferencer(str(digits / 'val'), out_dir=str(tmp_path), pred_score_thr=0.01)['predictions']
    assert len(folder) == len(images) == 4
    of_image = boxes(inferencer(str(images[0]))['predictions'][0])
    of_array = boxes(inferencer(array)['predictions'][0])
    assert of_image.shape == (100, 4)
    np.testing.assert_array_equal(of_array, of_image)
    assert any(np.array_equal(boxes(result), of_image) for result in folder)
    drawn = sorted((tmp_path / 'vis').iterdir())
    assert [p.name for p in drawn] == [p.name for p in images]
    assert (cv2.imread(str(drawn[0])) != array).any()

    model = init_detector(cfg, str(digits_run / 'epoch_1.pth'), device='cpu')
    assert model.dataset_meta['classes'] == tuple('0123456789')
    of_model = inference_detector(model, [array, cv2.imread(str(images[1]))])
    np.testing.assert_allclose(of_model[0].pred_instances.bboxes.numpy(), of_image, atol=1e-4)
    assert len(of_model) == 2


def test_checkpoint_alone_is_enough(digits, digits_run):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(weights=str(digits_run / 'epoch_1.pth'), device='cpu', show_progress=False)
    assert type(inferencer.model.backbone).__name__ == 'SCConvResNet'
    assert len(inferencer(str(digits / 'val'))['predictions']) == 4


def test_quickstart(tmp_path):
    done = run_tool(ROOT / 'docs' / 'quickstart.py', tmp_path, cwd=tmp_path)
    lines = dict(line.split(': ', 1) for line in done.stdout.splitlines() if ': ' in line)
    assert lines['output'] == '(1, 128, 16, 16)'
    assert lines['images in the folder'] == '4'
    drawn = [tmp_path / path for path in lines['drawn'].split()]
    assert len(drawn) == 4 and all(path.is_file() for path in drawn)
