"""Shared part of the RetinaNet configs for COCO and VOC: a plain ResNet-50 from scratch, and the optimizer."""

_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    './detection_runtime.py',
    'mmdet::retinanet/retinanet_tta.py',
]

# From scratch (the paper's section 3): no stage is frozen, and BN is trained.
# Pretrained weights: docs/tutorials/pretrain_to_detect.md.
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    )
)

val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# The paper's lr of 0.1 did not train in a short trial: README, 'Deviations from the paper'. 0.01 is for a batch of 16.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    clip_grad=dict(max_norm=35, norm_type=2),
)
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(log_metric_by_epoch=False))  # or each validation is logged at step 0
