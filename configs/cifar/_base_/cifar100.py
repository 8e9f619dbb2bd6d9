"""CIFAR-100: as CIFAR-10, with its own classes and its own mean and deviation (mmpretrain's)."""

_base_ = './cifar10.py'

data_root = 'data/cifar100'
data_preprocessor = dict(num_classes=100, mean=[129.304, 124.070, 112.434], std=[68.170, 65.392, 70.418])
images = dict(type='CIFAR100', data_root=data_root)
train_dataloader = dict(dataset=dict(dataset=images))
val_dataloader = dict(dataset=dict(dataset=images))
test_dataloader = val_dataloader
