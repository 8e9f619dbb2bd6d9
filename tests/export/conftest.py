import cv2
import pytest
import torch

from helpers.exportable import CLASSIFIER, DETECTOR, build


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('detector') / 'detector.pth'
    return build(DETECTOR, path), path


@pytest.fixture(scope='module')
def classifier(tmp_path_factory, digits):
    """A shallow classifier, its checkpoint, and scanned digits as its test data, 32 x 32 in class folders."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('classifier')
    for label in range(10):
        (folder / 'test' / str(label)).mkdir(parents=True)
    for i, path in enumerate(sorted(digits.glob('*/*.png'))):
        cv2.imwrite(str(folder / 'test' / str(i % 10) / path.name), cv2.resize(cv2.imread(str(path)), (32, 32)))
    return build(CLASSIFIER, folder / 'classifier.pth', depth=8), folder / 'classifier.pth', folder
