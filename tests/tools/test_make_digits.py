"""tools/make_digits.py: a run that is stopped leaves no annotations of other images."""

import cv2
import pytest


@pytest.mark.parametrize('good', [0, 3], ids=['at the first image', 'in val'])
def test_no_old_annotations_beside_new_images(good, tool, tmp_path, monkeypatch):
    args = ['make_digits', '--out', tmp_path, '--train', 2, '--val', 2]
    assert tool(*args)[0] == 0
    assert sorted(p.name for p in (tmp_path / 'annotations').iterdir()) == ['train.json', 'val.json']
    left, write = [good], cv2.imwrite

    def full(*image):
        left[0] -= 1
        return left[0] >= 0 and write(*image)

    monkeypatch.setattr(cv2, 'imwrite', full)
    status, _, error = tool(*args, '--seed', 1)
    stopped_at = tmp_path / ('val/000001.png' if good else 'train/000000.png')
    assert (status, error) == (2, f'error: cannot write {stopped_at}\n')
    # Those of train are new and whole, where all of its images were written.
    assert [p.name for p in (tmp_path / 'annotations').iterdir()] == (['train.json'] if good else [])
