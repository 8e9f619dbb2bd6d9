"""CIFAR-10 as image files, <data_root>/{train,test}/<class>/<image>: the same recipe on mmpretrain's CustomDataset."""

_base_ = './cifar10.py'

data_root = 'data/cifar10_folder'
data_preprocessor = dict(to_rgb=True)  # files are read as BGR; the arrays of CIFAR are RGB
files = dict(_delete_=True, type='CustomDataset', data_root=data_root, pipeline=[dict(type='LoadImageFromFile')])
train_dataloader = dict(dataset=dict(dataset=dict(**files, data_prefix='train')))
val_dataloader = dict(dataset=dict(dataset=dict(**files, data_prefix='test')))
test_dataloader = val_dataloader
