"""ResNet-20 on CIFAR-10 as image files, 20 epochs; holds the recipe of every config in this folder."""

_base_ = '../cifar/resnet56_cifar10_folder.py'

model = dict(backbone=dict(depth=20))
optim_wrapper = dict(optimizer=dict(lr=0.1, nesterov=True))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=1, end=20, eta_min=1e-4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=20, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
randomness = dict(seed=0)
