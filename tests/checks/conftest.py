import pytest
from mmengine.registry import init_default_scope


@pytest.fixture
def warnings(monkeypatch):
    """Lines that the checks warn with."""
    lines = []
    for module in ('checks.classes', 'checks.evaluators', 'checks.settings', 'checks.voc', 'datasets.coco'):
        monkeypatch.setattr(f'mmscconv.{module}.warn', lines.append)
    return lines


@pytest.fixture
def told(warnings):
    """The same, where data sets of mmdet are built."""
    init_default_scope('mmdet')
    return warnings
