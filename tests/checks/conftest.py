import pytest


@pytest.fixture
def warnings(monkeypatch):
    """Lines that the checks warn with."""
    lines = []
    for module in ('checks.classes', 'checks.settings', 'checks.voc', 'datasets.coco'):
        monkeypatch.setattr(f'mmscconv.{module}.warn', lines.append)
    return lines
