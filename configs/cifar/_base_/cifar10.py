"""CIFAR-10, padded by 4, cropped and flipped (section 3.1).

tools/train.py --download fetches CIFAR-10 into an existing data_root.

The images are decoded once and kept in memory, on a GPU if available (``device``), and
are augmented there, a batch at a time.
"""

_base_ = ['mmpretrain::_base_/datasets/cifar10_bs16.py', './recipe.py']

data_root = 'data/cifar10'
loader = dict(batch_size=128, num_workers=0, persistent_workers=False, collate_fn=dict(type='keep_batch'))
train_dataloader = dict(
    **loader,
    dataset=dict(
        _delete_=True,
        type='ImagesInMemory',
        crop_padding=4,
        flip_prob=0.5,
        dataset=dict(type='CIFAR10', data_root=data_root, split='train', pipeline=[], download=False),
    ),
)
val_dataloader = dict(
    **loader,
    dataset=dict(
        _delete_=True,
        type='ImagesInMemory',
        dataset=dict(type='CIFAR10', data_root=data_root, split='test', pipeline=[], download=False),
    ),
)
test_dataloader = val_dataloader
