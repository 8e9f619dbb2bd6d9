from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / 'shared' / 'data'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def real_data():
    """Folder with coco/, VOCdevkit/ and imagenet_mini/ in their standard layouts."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f'real images are not at {SHARED_DATA}')
    return SHARED_DATA


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A tiny digits data set."""
    from tools import run_tool

    folder = tmp_path_factory.mktemp('digits')
    run_tool('make_digits.py', '--out', folder, '--train', 12, '--val', 4)
    return folder
