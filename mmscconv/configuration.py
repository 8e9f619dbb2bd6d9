"""Config files: read, checked, and changed by command-line options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmscconv.checks.files import datasets
from mmscconv.checks.settings import check_keys
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained

RGB_DATASETS = ('CIFAR10', 'CIFAR100')  # of mmpretrain


def read_config(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    data_root: str | None = None,
    download: bool = False,
) -> Config:
    """Read the config at ``path`` and change it.

    Args:
        path: Path of the config file.
        options: Dotted keys and values of ``--cfg-options``; keys that the config cannot have are refused, and the
            config's own keys are checked with them. None: neither is looked at, for tools that only count or draw.
        data_root: Folder of the data that replaces the config's (:func:`move_data_root`).
        download: Download missing files of data sets that support it (CIFAR).

    Raises:
        UserError: The file is missing or is not a config; an option's key or ``data_root`` does not exist.
    """
    if not Path(path).is_file():
        raise UserError(f'config is not there: {path}')
    with explained(f'config {path}', (Exception,)):  # a config is Python, and may raise anything
        cfg = Config.fromfile(path)
    with explained(f'config {path}'):
        if options is not None:
            check_keys(cfg, options, str(path))
        if data_root:
            move_data_root(cfg, data_root)
        if options:
            cfg.merge_from_dict(dict(options))
    if download:
        for stage in ('train', 'val', 'test'):
            for dataset in datasets(cfg.get(f'{stage}_dataloader')):
                if 'download' in dataset:
                    dataset['download'] = True
    return cfg


def move_data_root(cfg: Config, data_root: str) -> None:
    """Replace the config's ``data_root`` at the start of every string that begins with it.

    A config may set ``data_root`` without changing the data sets that it inherits; the data sets' own root is then
    replaced, too.

    Raises:
        UserError: The config has no ``data_root``, or its data sets have several different roots.
    """
    root = cfg.get('data_root')
    if not root:
        raise UserError(f'--data-root needs a config with a data_root: {cfg.filename}')
    theirs = {
        dataset['data_root'].rstrip('/')
        for stage in ('train', 'val', 'test')
        for dataset in datasets(cfg.get(f'{stage}_dataloader'))
        if dataset.get('data_root')
    }
    old = [root.rstrip('/')]
    if theirs and not any(_is_below(path, old[0]) for path in theirs):
        if len(theirs) > 1:
            raise UserError(
                f"--data-root replaces the config's data_root {root!r}, but its data sets have "
                f'{", ".join(map(repr, sorted(theirs)))}: set their data_root in the config'
            )
        old += theirs
    new = data_root.rstrip('/') or '/'

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = moved(value)
        elif isinstance(node, list | tuple):
            return type(node)(moved(value) for value in node)
        elif isinstance(node, str):
            return next((new + node[len(path) :] for path in old if _is_below(node, path)), node)
        return node

    moved(cfg._cfg_dict)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f'{folder}/')


def model_of(cfg: Config) -> ConfigDict:
    """Return the config's model with the data preprocessor that it gets from the top of the config, as in a run."""
    model = cfg.model.copy()
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return model


def holds_rgb(cfg: Config) -> bool:
    """Return whether the data set tested on holds RGB arrays; all others read files, as BGR."""
    kinds = (str(dataset.get('type')).rpartition('.')[2] for dataset in datasets(cfg.get('test_dataloader')))
    return any(kind in RGB_DATASETS for kind in kinds)


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the dataset config inside any wrappers."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset
