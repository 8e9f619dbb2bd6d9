"""Small images decoded once and kept in memory, on the GPU where there is one.

An epoch of CIFAR through files and worker processes takes longer than the
network does; from one uint8 tensor, batched and augmented at once, it does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
from mmpretrain.structures import DataSample
from torch import Tensor
from torch.utils.data import Dataset

from mmscconv.checks.image_files import name_broken_files


@DATASETS.register_module()
class ImagesInMemory(Dataset[Any]):
    """An mmpretrain data set of images of one size, as one uint8 tensor.

    Gives whole batches (``__getitems__``), so its dataloader needs
    ``collate_fn=dict(type='keep_batch')`` and ``num_workers=0``.

    Args:
        dataset: Config of the data set; its pipeline ends with ``img`` in the
            results, for files ``[dict(type='LoadImageFromFile')]``.
        crop_padding: Zeros around the image for a random crop of its own size, in
            pixels; 0 for none.
        flip_prob: Probability of a horizontal flip.
        device: Where the images stay; ``'auto'`` is the GPU where there is one.
        every: Take each ``every``-th image only: a fixed subset, and balanced where
            the data set is sorted by class.

    Shape:
        A batch is ``dict(inputs=(N, C, H, W) uint8, data_samples=[DataSample] * N)``.

    Raises:
        ValueError: Images of different sizes, with the first two.
        UserError: An image that cannot be loaded, with its path.
    """

    def __init__(
        self,
        dataset: dict[str, Any],
        crop_padding: int = 0,
        flip_prob: float = 0.0,
        device: str = 'auto',
        every: int = 1,
    ) -> None:
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        inner = MMPRETRAIN_DATASETS.build(dataset)
        name_broken_files(inner)
        self.metainfo = inner.metainfo
        items = [inner[i] for i in range(0, len(inner), every)]
        for item in items:
            if item['img'].shape != items[0]['img'].shape:
                raise ValueError(
                    f'ImagesInMemory needs images of one size, got {items[0]["img"].shape} and {item["img"].shape}'
                )
        images = torch.stack([torch.from_numpy(item['img']) for item in items])
        self.images = images.permute(0, 3, 1, 2).contiguous().to(device)
        self.labels = torch.tensor([item['gt_label'] for item in items], device=device)
        self.crop_padding = crop_padding
        self.flip_prob = flip_prob

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([index])
        return {'inputs': batch['inputs'][0], 'data_samples': batch['data_samples'][0]}

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        chosen = torch.tensor(indices, device=self.images.device)
        labels = self.labels[chosen]
        return {
            'inputs': self.augment(self.images[chosen]),
            'data_samples': [DataSample().set_gt_label(labels[i : i + 1]) for i in range(len(indices))],
        }

    def augment(self, images: Tensor) -> Tensor:
        """Crop and flip each of (N, C, H, W) images at random, by the CPU's generator, which ExactResume seeds."""
        n, _, height, width = images.shape
        device = images.device
        if self.crop_padding:
            top, left = torch.randint(2 * self.crop_padding + 1, (2, n, 1)).to(device)
            rows = top + torch.arange(height, device=device)
            columns = left + torch.arange(width, device=device)
            which = torch.arange(n, device=device).view(n, 1, 1)
            padded = F.pad(images, [self.crop_padding] * 4).permute(0, 2, 3, 1)
            images = padded[which, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
        if self.flip_prob:
            flip = torch.rand(n, 1, 1, 1).to(device) < self.flip_prob
            images = torch.where(flip, images.flip(3), images)
        return images


@FUNCTIONS.register_module()
def keep_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch unchanged: the data set gives whole batches."""
    return batch
