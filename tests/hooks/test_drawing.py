"""Drawings of images of one name are kept apart."""

from types import SimpleNamespace

import pytest
from mmengine.structures import BaseDataElement

from mmscconv.hooks.drawing import ClassDrawingHook, DetectionDrawingHook, folders_of

PATHS = ['d/a/1.jpg', 'd/b/1.jpg', 'd/b/2.jpg']


def test_images_of_one_name_get_the_folder_in_which_they_differ():
    assert folders_of(PATHS) == {'d/a/1.jpg': 'a', 'd/b/1.jpg': 'b'}
    assert folders_of(['d/1.jpg', 'd/2.jpg', 'd/2.jpg']) == {}  # listed twice, but one image
    assert folders_of(['d/1.jpg', 'd/a/1.jpg']) == {'d/1.jpg': '.', 'd/a/1.jpg': 'a'}
    assert folders_of(['/x/7/JPEGImages/1.jpg', '/x/12/JPEGImages/1.jpg']) == {
        '/x/7/JPEGImages/1.jpg': '7/JPEGImages',
        '/x/12/JPEGImages/1.jpg': '12/JPEGImages',
    }
    assert folders_of([]) == {}
    assert folders_of(['d/./a/1.jpg', 'd/a/1.jpg']) == {}  # one file, named in two ways
    assert folders_of(['d/./a/1.jpg', 'd/a/1.jpg', 'd/b/1.jpg']) == {
        'd/./a/1.jpg': 'a',
        'd/a/1.jpg': 'a',
        'd/b/1.jpg': 'b',
    }


class Images:
    def __len__(self):
        return len(PATHS)

    def get_data_info(self, i):
        return dict(img_path=PATHS[i])


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(
        work_dir=str(tmp_path), timestamp='now', test_dataloader=SimpleNamespace(dataset=Images()),
    )  # fmt: skip


def test_detections(runner, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        'mmdet.engine.hooks.DetVisualizationHook.after_test_iter',
        lambda hook, runner, batch_idx, batch, outputs: drawn.append((hook.test_out_dir, outputs)),
    )
    hook = object.__new__(DetectionDrawingHook)
    hook.test_out_dir = 'drawn'
    hook.before_test(runner)
    outputs = [SimpleNamespace(img_path=path) for path in PATHS]
    hook.after_test_iter(runner, 0, None, outputs)
    folder = tmp_path / 'now' / 'drawn'
    assert drawn == [(str(folder / f), [o]) for f, o in zip(('a', 'b', ''), outputs, strict=True)]


@pytest.mark.parametrize('paths', [PATHS, []], ids=['files', 'arrays'])
def test_classes(paths, runner, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        'mmpretrain.engine.hooks.VisualizationHook.after_test_iter',
        lambda hook, runner, batch_idx, batch, outputs: drawn.append(
            (hook.out_dir, len(outputs), len(batch['inputs']), batch_idx)
        ),
    )
    if not paths:
        runner.test_dataloader.dataset = []
    hook = object.__new__(ClassDrawingHook)
    hook.out_dir = str(tmp_path)
    hook.before_test(runner)
    outputs = [BaseDataElement(metainfo=dict(img_path=path)) for path in PATHS]
    hook.after_test_iter(runner, 0, dict(inputs=[1, 2, 3]), outputs)
    apart = [(str(tmp_path / name), 1, 1, i) for i, name in enumerate(('a', 'b', ''))]
    assert drawn == (apart if paths else [(str(tmp_path), 3, 3, 0)])
    hook.after_test_iter(runner, 1, dict(inputs=[1, 2, 3]), outputs)
    assert [batch_idx for *_, batch_idx in drawn] == ([*range(6)] if paths else [0, 1])
