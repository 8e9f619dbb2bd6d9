"""Names of a trained model's classes, for tools that use it without its data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import list_from_file

from mmscconv.checks.classes import classes_of
from mmscconv.checks.files import datasets
from mmscconv.storage.checkpoints import classes_in


def known_metainfo(content: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the metainfo of a checkpoint (of mmdet 2, too) or else of its config, keys in small letters.

    Args:
        content: The checkpoint's.
        cfg: Whose ``metainfo``, or that of its test, validation or training data, names the classes where the
            checkpoint does not. A path of a file there stands for the lines of the file, as mmengine takes it.

    Returns:
        Metainfo with ``classes``, unless nothing names them.
    """
    classes = classes_in(content)
    known = (content.get('meta') or {}).get('dataset_meta') or {} if classes else cfg.get('metainfo') or {}
    found = {key.lower(): value for key, value in known.items()}
    if not classes:
        loaders = (cfg.get(f'{stage}_dataloader') for stage in ('test', 'val', 'train'))
        given = [found.get('classes'), *(_given(dataset) for loader in loaders for dataset in datasets(loader))]
        classes = next((_listed(names) for names in given if names), None)
    return {**found, 'classes': classes} if classes else found


def _given(dataset: Mapping[str, Any]) -> Any:
    """Return the classes that a data set's config gives, as names or as a path."""
    metainfo = dataset.get('metainfo')
    own = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
    return own or dataset.get('classes') or classes_of(dataset)  # mmpretrain has an argument for them


def _listed(names: Any) -> Any:
    return list_from_file(names) if isinstance(names, str) and Path(names).is_file() else names
