"""Drawings of a test's results, one file for each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from mmdet.engine.hooks import DetVisualizationHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.engine.hooks import VisualizationHook


def folders_of(paths: Iterable[str]) -> dict[str, str]:
    """Return the folder, below that of the drawings, of each image whose name is not its own.

    It is the image's folder, without what all images of such names have in common; an image with a name of its own
    needs none.
    """
    paths = {*paths}
    files = {PurePath(path) for path in paths}  # one file may be named in several ways
    counts = Counter(file.name for file in files)
    shared = {path: PurePath(path).parent.parts for path in paths if counts[PurePath(path).name] > 1}
    common = 0
    while len({parts[: common + 1] for parts in shared.values()}) == 1:
        common += 1
    return {path: str(PurePath(*parts[common:])) for path, parts in shared.items()}


def _image_paths(runner: Runner) -> list[str]:
    dataset = runner.test_dataloader.dataset
    if not hasattr(dataset, 'get_data_info'):
        return []
    paths = (dataset.get_data_info(i).get('img_path') for i in range(len(dataset)))
    return [str(path) for path in paths if path]


@HOOKS.register_module()
class DetectionDrawingHook(DetVisualizationHook):
    """mmdet's ``DetVisualizationHook``, which keeps images of one name from several folders apart."""

    test_out_dir: str | None

    def before_test(self, runner: Runner) -> None:
        """Choose the folder of each drawing."""
        self._out_dir = self.test_out_dir and Path(runner.work_dir, runner.timestamp, self.test_out_dir)
        self._folders = folders_of(_image_paths(runner)) if self._out_dir else {}

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]) -> None:
        """Draw the results of a batch."""
        for output in outputs:
            if self._out_dir:
                self.test_out_dir = str(self._out_dir / self._folders.get(str(output.img_path), ''))
            super().after_test_iter(runner, batch_idx, data_batch, [output])


@HOOKS.register_module()
class ClassDrawingHook(VisualizationHook):
    """mmpretrain's ``VisualizationHook``, which keeps images of one name from several folders apart."""

    out_dir: Any  # a path, or None

    def before_test(self, runner: Runner) -> None:
        """Choose the folder of each drawing."""
        self._out_dir = self.out_dir
        self._folders = folders_of(_image_paths(runner)) if self._out_dir else {}
        self._seen = 0

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]) -> None:
        """Draw the results of a batch."""
        if not self._folders:
            super().after_test_iter(runner, batch_idx, data_batch, outputs)
            return
        for image, output in zip(data_batch['inputs'], outputs, strict=True):
            self.out_dir = str(Path(self._out_dir, self._folders.get(str(output.get('img_path')), '')))
            # As batches of one image: their number decides, by the interval, about drawing.
            super().after_test_iter(runner, self._seen, {**data_batch, 'inputs': [image]}, [output])
            self._seen += 1
