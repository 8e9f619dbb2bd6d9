"""The demo's plain network on blood cells (BCCD) at 320x240, 30 epochs; holds the recipe of this folder.

data/cells holds train.json and val.json, as tools/own_dataset.py writes them, and the data set's JPEGImages.
"""

_base_ = '../retinanet_r18_digits.py'

input_shape = (240, 320)  # of tools/complexity.py
data_root = 'data/cells/'
metainfo = dict(classes=('Platelets', 'RBC', 'WBC'))
model = dict(bbox_head=dict(num_classes=3))

resize = dict(type='Resize', scale=(320, 240), keep_ratio=True)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
sized = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))  # a box without size makes the loss infinite
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
data = dict(data_root=data_root, metainfo=metainfo, data_prefix=dict(img='JPEGImages/'))
train_dataloader = dict(
    dataset=dict(**data, ann_file='train.json', pipeline=[*load, sized, resize, flip, dict(type='PackDetInputs')])
)
val_dataloader = dict(dataset=dict(**data, ann_file='val.json', pipeline=[load[0], resize, load[1], pack]))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=4e-3))
train_cfg = dict(max_epochs=30, val_interval=6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, end=30, eta_min=1e-6, convert_to_iter_based=True),
]
default_hooks = dict(visualization=dict(score_thr=0.3))
