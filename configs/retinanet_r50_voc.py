"""Baseline of Table 4: RetinaNet with a plain ResNet-50, VOC 07+12 trainval to 07 test.

The batch of 32 is for one device; with N devices set
train_dataloader.batch_size to 32 / N.
"""

_base_ = ['./_base_/retinanet_r50_from_scratch.py', 'mmdet::_base_/datasets/voc0712.py']

model = dict(bbox_head=dict(num_classes=20))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(0, 0), keep_empty=False),  # boxes without size
    dict(type='PackDetInputs'),
]
parts = [
    dict(
        type='CheckedVOCDataset',
        data_root='data/VOCdevkit/',
        ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=32),
        pipeline=train_pipeline,
    )
    for year in (2007, 2012)
]
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(dataset=dict(datasets=parts)),
)

# COCO-style AP on VOC: the metric builds its ground truth from the packed
# 'instances', in which difficult objects count as neither hit nor miss.
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1000, 600), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=meta_keys),
]
val_dataloader = dict(dataset=dict(type='CheckedVOCDataset', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox', prefix='voc')
test_evaluator = val_evaluator

tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=s, keep_ratio=True) for s in ((1000, 600), (667, 400), (1333, 800))],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [dict(type='LoadAnnotations', with_bbox=True)],
            [dict(type='PackDetInputs', meta_keys=(*meta_keys, 'flip', 'flip_direction'))],
        ],
    ),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=2000)

# Twice the batch of COCO's schedule, hence twice its lr.
optim_wrapper = dict(optimizer=dict(lr=0.02))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=20000, milestones=[10000, 18000], gamma=0.1),
]

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2000, max_keep_ckpts=3, save_best='voc/bbox_mAP'),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)
