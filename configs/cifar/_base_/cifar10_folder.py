"""CIFAR-10 as image files, <data_root>/{train,test}/<class>/<image>: the same recipe on mmpretrain's CustomDataset."""

_base_ = './cifar10.py'

data_root = 'data/cifar10_folder'
data_preprocessor = dict(to_rgb=True)  # files are read as BGR; the arrays of CIFAR are RGB
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    dataset=dict(_delete_=True, type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(_delete_=True, type='CustomDataset', data_root=data_root, data_prefix='test', pipeline=test_pipeline)
)
test_dataloader = val_dataloader
