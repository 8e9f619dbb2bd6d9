"""Baseline of Table 3: ResNet-50 on ImageNet-1K, the paper's schedule.

100 epochs, lr 0.1, divided by 10 every 30 epochs. The paper gives no batch size; ours
is the usual 256, for one device. With N devices set train_dataloader.batch_size to
256 / N.
"""

_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    'mmpretrain::_base_/schedules/imagenet_bs256.py',
    './_base_/classification_runtime.py',
]

data_root = 'data/imagenet'
train_dataloader = dict(batch_size=256, dataset=dict(data_root=data_root))
val_dataloader = dict(batch_size=256, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
auto_scale_lr = dict(enable=False)
