import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from mmscconv.datasets import ImagesInMemory


@pytest.fixture
def folder(tmp_path):
    """Two classes of three 6x6 PNG images each, with distinct pixels."""
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for i in range(3):
            image = np.arange(108, dtype=np.uint8).reshape(6, 6, 3) + 20 * (3 * label + i)
            cv2.imwrite(str(tmp_path / str(label) / f'{i}.png'), image)
    return tmp_path


def config(folder, **kwargs):
    inner = dict(type='CustomDataset', data_root=str(folder), pipeline=[dict(type='LoadImageFromFile')])
    return dict(type='ImagesInMemory', dataset=inner, device='cpu', **kwargs)


def test_same_images_and_labels(folder):
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(config(folder))
    assert isinstance(dataset, ImagesInMemory)
    assert len(dataset) == 6
    assert dataset.metainfo['classes'] == ('0', '1')
    for i in range(6):
        want = cv2.imread(str(folder / str(i // 3) / f'{i % 3}.png'))
        assert np.array_equal(dataset[i]['inputs'].permute(1, 2, 0).numpy(), want)
        assert dataset[i]['data_samples'].gt_label.item() == i // 3


def test_every_takes_a_balanced_subset(folder):
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(config(folder, every=3))
    assert dataset.labels.tolist() == [0, 1]


def test_augmented_is_a_shifted_and_maybe_flipped_original(folder):
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(config(folder, crop_padding=2, flip_prob=0.5))
    seen = set()
    for _ in range(60):
        batch = dataset.__getitems__([0, 5])
        for index, image in zip((0, 5), batch['inputs'], strict=True):
            padded = np.pad(dataset.images[index].numpy(), ((0, 0), (2, 2), (2, 2)))
            matches = [
                (top, left, flip)
                for top in range(5)
                for left in range(5)
                for flip in (False, True)
                if np.array_equal(image.numpy(), padded[:, top : top + 6, left : left + 6][:, :, :: -1 if flip else 1])
            ]
            assert len(matches) == 1
            seen.add(matches[0])
    assert {m[0] for m in seen} == set(range(5))
    assert {m[1] for m in seen} == set(range(5))
    assert {m[2] for m in seen} == {False, True}


def test_loader_gives_what_the_preprocessor_takes(folder):
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    loader = Runner.build_dataloader(
        dict(
            batch_size=4,
            num_workers=0,
            dataset=config(folder),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='keep_batch'),
        ),
        seed=0,
    )
    preprocessor = MODELS.build(dict(type='ClsDataPreprocessor', mean=[1.0], std=[2.0]))
    batches = [preprocessor(batch) for batch in loader]
    assert [len(b['data_samples']) for b in batches] == [4, 2]
    assert batches[0]['inputs'].dtype == torch.float32
    torch.testing.assert_close(batches[0]['inputs'][0], (loader.dataset.images[0].float() - 1) / 2)


def test_different_sizes_are_refused(folder):
    cv2.imwrite(str(folder / '1' / '9.png'), np.zeros((7, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r'images of one size, got \(6, 6, 3\) and \(7, 6, 3\)'):
        DATASETS.build(config(folder))
