"""The runner of this package's tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmscconv.checks.classes import check_heads, require_same_classes
from mmscconv.checks.files import datasets, join
from mmscconv.checks.image_files import name_broken_files
from mmscconv.errors import UserError
from mmscconv.foreign_errors import says_no_images


class CheckedRunner(Runner):
    """mmengine's runner, with data sets that name the file that cannot be loaded.

    A hook would come too late: the iteration-based loop starts its workers when it is
    built, and workers keep the data set that they were started with.
    """

    _train_dataloader: Any  # as configured, then as built

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Build a dataloader.

        Raises:
            UserError: Its data set is empty. mmengine would fail without a reason, or a
                sampler would loop for ever.
        """
        if isinstance(dataloader, Mapping) and dataloader.get('num_workers') == 0:
            dataloader = {**dataloader, 'persistent_workers': False, 'prefetch_factor': None}  # torch refuses others
        try:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        except ValueError as error:
            if not says_no_images(error):
                raise
            raise UserError(_empty(dataloader)) from error
        if len(loader.dataset) == 0:
            raise UserError(_empty(dataloader))
        name_broken_files(loader.dataset)
        return loader

    def build_train_loop(self, loop: Any) -> BaseLoop:
        """Build the loop, and compare the model's heads with the classes of its data set."""
        return self._compared(super().build_train_loop(loop), 'train')

    def build_val_loop(self, loop: Any) -> BaseLoop:
        """Build the loop, and compare the model's heads with the classes of its data set."""
        return self._compared(super().build_val_loop(loop), 'val')

    def build_test_loop(self, loop: Any) -> BaseLoop:
        """Build the loop, and compare the model's heads with the classes of its data set."""
        return self._compared(super().build_test_loop(loop), 'test')

    def _compared(self, loop: BaseLoop, stage: str) -> BaseLoop:
        dataset = loop.dataloader.dataset
        if not getattr(dataset, 'return_classes', False):  # detectors that read class names have no output per class
            classifies = self.cfg.get('default_scope') == 'mmpretrain'
            source = f'the data set of {stage}_dataloader'
            metainfo = getattr(dataset, 'metainfo', {})
            check_heads(self.model, metainfo, source, classifies)
            classes = metainfo.get('classes')
            if classifies and classes is not None:  # mmpretrain numbers the folders of each data set anew
                first, names = self.__dict__.setdefault('_first_classes', (source, list(classes)))
                require_same_classes(names, first, list(classes), source)
        return loop

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rate by the images of a step, all accumulated batches included.

        A resumed training takes the learning rate from its checkpoint.
        """
        if self._resume and self._load_from:
            return
        loader = self._train_dataloader
        batch = loader.batch_size if isinstance(loader, DataLoader) else loader.get('batch_size')
        counts = getattr(optim_wrapper, '_accumulative_counts', 1)
        self._train_dataloader = {'batch_size': (batch or 1) * counts}  # mmengine reads nothing else here
        try:
            super().scale_lr(optim_wrapper, auto_scale_lr)
        finally:
            self._train_dataloader = loader


class TestingRunner(CheckedRunner):
    """A runner that leaves the training's config in the work dir alone."""

    _log_dir: str
    _work_dir: str

    def dump_config(self) -> None:
        """Write the config beside the test's log."""
        work_dir, self._work_dir = self._work_dir, self._log_dir
        try:
            super().dump_config()
        finally:
            self._work_dir = work_dir


def _empty(dataloader: Mapping[str, Any]) -> str:
    sources = {join(d.get('data_root'), d.get('ann_file')) for d in datasets(dataloader)}
    return f'no image is left after the filters of the data set (are its classes right?): {", ".join(sorted(sources))}'
