"""Real images as the network sees them: through the config's own test pipeline and data preprocessor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from torch import Tensor, nn

from mmscconv.checks.files import check_data
from mmscconv.checks.image_files import SUFFIXES, name_broken_files
from mmscconv.configuration import innermost_dataset
from mmscconv.engine.launch import run_errors_named
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained, flat_message

# An image with its data sample, as a pipeline packs them.
Item = dict[str, Any]


def find_images(paths: Sequence[str]) -> list[Path]:
    """Return the files of ``paths``, and the images in its folders and their subfolders.

    Raises:
        UserError: A missing path, or no image at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f'--images: not there: {path}')
    if not found:
        raise UserError(f'--images: no image ({" ".join(SUFFIXES)}) in {" ".join(paths)}')
    return found


def load_files(cfg: Config, paths: Sequence[Path], count: int) -> list[Item]:
    """Return ``count`` of the files, evenly spaced, through the test pipeline, without labels.

    Raises:
        UserError: A file that cannot be read, or a pipeline that reads no files.
    """
    with explained('test pipeline of the config'):
        pipeline = Compose(innermost_dataset(cfg.test_dataloader.dataset).get('pipeline', []))
    items = []
    for path in (paths[i] for i in spread(len(paths), count)):
        try:
            item = pipeline(dict(img_path=str(path), img_id=0, instances=[]))
        except Exception as error:
            reason = flat_message(error) or type(error).__name__
            raise UserError(f'cannot load {path}: {reason} (restore the file, or leave it out)') from error
        if 'inputs' not in item:
            raise UserError('--images: the test pipeline of this config gives no tensors; leave --images out')
        items.append(item)
    return items


def load_dataset(cfg: Config, count: int) -> tuple[list[Item], Sequence[str] | None]:
    """Return ``count`` images of the config's test data, evenly spaced, with their labels, and the data's class names.

    Raises:
        UserError: Missing data.
    """
    if not cfg.get('test_dataloader'):
        raise UserError(f'no images for the check: pass --images, {cfg.filename} has no test_dataloader')
    try:
        check_data(cfg, ('test',))
    except UserError as error:
        raise UserError(f'no images for the check: pass --images FOLDER, or mend this: {error}') from error
    with run_errors_named(), explained('data set of the config'):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    name_broken_files(dataset)
    return [dataset[i] for i in spread(len(dataset), count)], getattr(dataset, 'metainfo', {}).get('classes')


def spread(total: int, count: int) -> list[int]:
    """Return up to ``count`` of ``range(total)``, evenly spaced: data sets are often sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def preprocess(model: nn.Module, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Return the images (N, 3, H, W), normalized and padded to one size, and (height, width) without padding (N, 2)."""
    data = {key: [item[key] for item in items] for key in ('inputs', 'data_samples')}
    sizes = [image.shape[-2:] for image in data['inputs']]
    preprocessor: Any = model.data_preprocessor
    return preprocessor(data, False)['inputs'], torch.tensor(sizes, dtype=torch.float32)


def resized(images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the images interpolated to ``size`` (H, W), and that size for each image (N, 2)."""
    images = F.interpolate(images, size=size, mode='bilinear', antialias=True)
    return images, torch.tensor(size, dtype=torch.float32).repeat(len(images), 1)
