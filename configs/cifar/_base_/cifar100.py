"""CIFAR-100, padded by 4, cropped and flipped (section 3.1); mmpretrain downloads it into an existing data_root."""

_base_ = ['mmpretrain::_base_/datasets/cifar100_bs16.py', './recipe.py']

data_root = 'data/cifar100'
train_dataloader = dict(batch_size=128, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=128, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
