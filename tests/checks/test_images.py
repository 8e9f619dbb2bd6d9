"""Unusual images are loaded, broken ones are named."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

import mmscconv
from helpers.paths import ROOT
from mmscconv.checks.image_files import NamedTransform, size_of, truncation
from mmscconv.engine.runner import CheckedRunner
from mmscconv.errors import UserError

EXIF_ROTATED = 6


def pixels(height=48, width=64):
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8), (0, 0), 2)


def save(image, path, **options):
    image.save(path, **options)
    return path


VALID = {
    'cmyk': lambda d: save(Image.fromarray(pixels()).convert('CMYK'), d / 'a.jpg'),
    'grey': lambda d: save(Image.fromarray(pixels()).convert('L'), d / 'a.jpg'),
    'palette': lambda d: save(Image.fromarray(pixels()).convert('P'), d / 'a.png'),
    'alpha': lambda d: save(Image.fromarray(pixels()).convert('RGBA'), d / 'a.png'),
    'black and white': lambda d: save(Image.fromarray(pixels()).convert('1'), d / 'a.png'),
    '16 bit': lambda d: save(Image.fromarray(pixels()[..., 0].astype(np.uint16) * 256), d / 'a.png'),
    'rotated': lambda d: save(Image.fromarray(pixels()), d / 'a.jpg', exif=exif()),
    '1x1': lambda d: save(Image.fromarray(pixels(1, 1)), d / 'a.jpg'),
}


def exif():
    data = Image.Exif()
    data[0x0112] = EXIF_ROTATED
    return data


@pytest.fixture(scope='module')
def pipelines():
    """The shipped pipelines of detection, for training and testing, and of classification for training."""
    coco, imagenet = mmscconv.get_config('retinanet_scconv_r50_coco'), mmscconv.get_config('scconv_resnet50_imagenet')
    init_default_scope('mmpretrain')
    built = {'classifier': Compose(imagenet.train_dataloader.dataset.pipeline)}
    init_default_scope('mmdet')
    built['train'] = Compose(coco.train_dataloader.dataset.pipeline)
    built['test'] = Compose(coco.test_dataloader.dataset.pipeline)
    return built


def run_pipeline(pipeline, path, height, width):
    results = dict(
        img_path=str(path), img_id=1, height=height, width=width, gt_label=0,
        instances=[dict(bbox=[0, 0, width, height], bbox_label=0, ignore_flag=0)],
    )  # fmt: skip
    for transform in pipeline.transforms:
        results = NamedTransform(transform)(results)
    return results


@pytest.mark.parametrize('kind', VALID)
def test_unusual_images_become_three_channels_of_bytes(kind, pipelines, tmp_path):
    path = VALID[kind](tmp_path)
    height, width = cv2.imread(str(path)).shape[:2]
    for name, pipeline in pipelines.items():
        inputs = run_pipeline(pipeline, path, height, width)['inputs']
        assert inputs.shape[0] == 3 and str(inputs.dtype) == 'torch.uint8', name
        assert min(inputs.shape[1:]) >= (224 if name == 'classifier' else 800)


def test_colours_and_ranges_survive(tmp_path):
    image = pixels()
    loaded = {kind: cv2.imread(str(VALID[kind](tmp_path))) for kind in ('alpha', '16 bit', 'grey', 'rotated')}
    assert (loaded['alpha'] == image[..., ::-1]).all()
    assert (loaded['16 bit'] == image[..., :1]).all()
    assert np.ptp(loaded['grey'].astype(int), axis=2).max() == 0
    assert loaded['rotated'].shape == (64, 48, 3)


def test_fifty_megapixels(pipelines, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.jpg'), np.zeros((5774, 8660, 3), np.uint8))
    assert run_pipeline(pipelines['test'], tmp_path / 'a.jpg', 5774, 8660)['inputs'].shape == (3, 800, 1200)


def cut(path, share=2 / 3):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def whole(folder, suffix, **options):
    return save(Image.fromarray(pixels()), folder / f'a.{suffix}', **options)


BROKEN = {
    'cut JPEG': (lambda d: cut(whole(d, 'jpg')), 'the file is cut short'),
    'end of a JPEG': (lambda d: cut(whole(d, 'jpg'), 0.97), 'the file is cut short'),
    'progressive JPEG': (lambda d: cut(whole(d, 'jpg', progressive=True)), 'the file is cut short'),
    'cut PNG': (lambda d: cut(whole(d, 'png')), 'the file is cut short'),
    'empty': (lambda d: cut(whole(d, 'jpg'), 0), 'the file is empty'),
    'text': (lambda d: (d / 'a.jpg').write_text('hello') and d / 'a.jpg', 'failed to load image'),
    'nothing': (lambda d: d / 'a.jpg', 'No such file'),
}


@pytest.mark.parametrize('kind', BROKEN)
def test_broken_images_are_named(kind, tmp_path):
    make, reason = BROKEN[kind]
    path = make(tmp_path)
    with pytest.raises(UserError) as error:
        NamedTransform(LoadImageFromFile())({'img_path': str(path)})
    assert f'cannot load {path}: ' in str(error.value) and reason in str(error.value)
    assert '\n' not in str(error.value)


def test_an_image_filled_with_grey_by_an_older_opencv_is_refused(tmp_path, monkeypatch):
    path = cut(whole(tmp_path, 'jpg'))
    monkeypatch.setattr('mmcv.imfrombytes', lambda *_, **__: np.full((48, 64, 3), 128, np.uint8))
    with pytest.raises(UserError, match=r'a\.jpg: the file is cut short'):
        NamedTransform(LoadImageFromFile())({'img_path': str(path)})


def test_bytes_after_a_whole_image_are_none_of_our_business(tmp_path):
    for suffix in ('jpg', 'png'):
        path = whole(tmp_path, suffix)
        path.write_bytes(path.read_bytes() + b'appended by a camera')
        assert truncation(path) is None
        assert NamedTransform(LoadImageFromFile())({'img_path': str(path)})['img'].shape == (48, 64, 3)


def test_more_pixels_than_pillow_opens(tmp_path, monkeypatch):
    path = VALID['rotated'](tmp_path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(UserError, match=r'cannot load .*a\.jpg: Image size .* exceeds limit'):
        size_of(path)
    load = NamedTransform(LoadImageFromFile())
    with pytest.raises(UserError, match=r'a\.jpg is 48x64 once loaded, .* says 64x48'):
        load({'img_path': str(path), 'height': 48, 'width': 64})
    path.write_bytes(path.read_bytes() + b'appended by a camera')
    with pytest.raises(UserError, match=r'cannot load .*a\.jpg: .* too many pixels to be checked .* exceeds limit'):
        load({'img_path': str(path)})


def test_another_size_than_annotated(tmp_path):
    load = NamedTransform(LoadImageFromFile())
    rotated = VALID['rotated'](tmp_path)
    with pytest.raises(
        UserError, match=r'a\.jpg is 48x64 once loaded, .* says 64x48: its EXIF data rotate it, .*color_'
    ):
        load({'img_path': str(rotated), 'height': 48, 'width': 64})
    ignore = NamedTransform(LoadImageFromFile(color_type='color_ignore_orientation'))
    assert ignore({'img_path': str(rotated), 'height': 48, 'width': 64})['img'].shape == (48, 64, 3)
    with pytest.raises(UserError, match='48x64 once loaded, but its annotation says 640x480: the boxes belong'):
        load({'img_path': str(rotated), 'height': 480, 'width': 640})
    assert load({'img_path': str(rotated), 'height': 0, 'width': 0})['img'].shape == (64, 48, 3)


def test_an_image_that_a_transform_cannot_take(pipelines, tmp_path):
    path = save(Image.fromarray(pixels(1, 4000)), tmp_path / 'strip.png')
    with pytest.raises(UserError, match=r'cannot transform .*strip\.png \(Resize\): '):
        run_pipeline(pipelines['test'], path, 1, 4000)


def loader_of(folder, **dataset):
    dataset = dict(type='mmpretrain.CustomDataset', data_root=str(folder), **dataset)
    return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)


@pytest.fixture
def class_folder(tmp_path):
    (tmp_path / 'cat').mkdir()
    cut(whole(tmp_path / 'cat', 'jpg'))
    return tmp_path


def test_images_are_named_as_soon_as_a_loader_is_built(class_folder):
    loader = loader_of(class_folder, pipeline=[dict(type='LoadImageFromFile')])
    dataset = CheckedRunner.build_dataloader(loader).dataset
    with pytest.raises(UserError, match=r'cat/a\.jpg: the file is cut short'):
        dataset[0]


def test_images_in_memory_are_named(class_folder):
    from mmscconv.datasets import ImagesInMemory

    inner = loader_of(class_folder, pipeline=[dict(type='LoadImageFromFile')])['dataset']
    with pytest.raises(UserError, match=r'cat/a\.jpg: the file is cut short'):
        ImagesInMemory(inner)


@pytest.mark.parametrize('settings', [{}, dict(serialize_data=False)], ids=['', 'as it is'])
def test_a_data_set_without_images_is_refused(digits, settings):
    cfg = mmscconv.get_config('retinanet_r18_digits')
    init_default_scope('mmdet')
    dataset = dict(cfg.train_dataloader.dataset, data_root=str(digits), filter_cfg=dict(min_size=4096), **settings)
    with pytest.raises(UserError, match=r'no image is left after the filters of the data set .*train\.json'):
        CheckedRunner.build_dataloader(dict(loader_of(digits), dataset=dataset))


def test_visualize_names_a_broken_image(tool, tmp_path):
    path = cut(whole(tmp_path, 'jpg'))
    config = ROOT / 'configs' / 'resnet50_imagenet.py'
    status, _, stderr = tool('visualize_features', path, config, config)
    assert status == 2 and f'error: cannot read an image from {path}: the file is cut short' in stderr
