"""The runner of our tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmscconv.checks.files import datasets, join
from mmscconv.checks.images import name_broken_files
from mmscconv.errors import UserError


class CheckedRunner(Runner):
    """mmengine's runner, whose data sets name the file that they cannot load.

    A hook would come too late: with workers, the loop by iterations starts them as
    soon as it is built, and they keep the data set that they were started with.
    """

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Build a dataloader.

        Raises:
            UserError: Its data set is empty, which fails in mmengine without a reason, or
                keeps a sampler busy for ever.
        """
        try:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        except ValueError as error:
            if 'need at least one array' not in str(error):
                raise
            raise UserError(_empty(dataloader)) from error
        if len(loader.dataset) == 0:
            raise UserError(_empty(dataloader))
        name_broken_files(loader.dataset)
        return loader


def _empty(dataloader: Mapping[str, Any]) -> str:
    sources = {join(d.get('data_root'), d.get('ann_file')) for d in datasets(dataloader)}
    return f'no image is left after the filters of the data set (are its classes right?): {", ".join(sorted(sources))}'
