"""Baseline of Table 5: RetinaNet with a plain ResNet-50 on COCO, the paper's schedule.

The batch of 16 is for one device; with N devices set
train_dataloader.batch_size to 16 / N.
"""

_base_ = ['./_base_/retinanet_r50_from_scratch.py', 'mmdet::_base_/datasets/coco_detection.py']

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(0, 0), keep_empty=False),  # boxes without size
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(type='CheckedCocoDataset', pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(type='CheckedCocoDataset'))
test_dataloader = val_dataloader
val_evaluator = dict(type='CheckedCocoMetric')
test_evaluator = val_evaluator

train_cfg = dict(type='IterBasedTrainLoop', max_iters=180000, val_interval=10000)

param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=180000, milestones=[120000, 160000], gamma=0.1),
]

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=10000, max_keep_ckpts=3, save_best='coco/bbox_mAP'),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
