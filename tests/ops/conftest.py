import pytest
import torch

from helpers.kernels import TRITON


@pytest.fixture(params=['native', pytest.param('triton', marks=TRITON)])
def backend(request):
    """Whose kernels run."""
    return request.param


@pytest.fixture
def poisoned(monkeypatch):
    """Fill what is allocated uninitialized with NaN."""

    def poisoning(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(float('nan'))

    for name in ('empty', 'empty_like'):
        monkeypatch.setattr(torch, name, poisoning(getattr(torch, name)))


@pytest.fixture
def full_tiles(backend, monkeypatch):
    """Leave the tiles of small maps as they are for large ones: cut up for no multiprocessor."""
    if backend == 'triton':
        from mmscconv.ops.gpu import tiles

        monkeypatch.setattr(tiles, 'MULTIPROCESSORS', 0)
