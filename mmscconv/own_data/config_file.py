"""The config of a data set: a page that a person can read and change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pprint import pformat

from mmscconv.own_data.recipe import Recipe

TEMPLATE = '''# Written by tools/own_dataset.py from {source!r}; change what you like.
_base_ = __import__('mmscconv').get_config({base!r}).filename
{start}
data_root = {images!r}  # the images lie where they lay; another place: --data-root
here = r"""{{{{ fileDirname }}}}/"""  # may have quotes in it
metainfo = {metainfo}
model = {model}

resize = dict(type='Resize', scale={size!r}, keep_ratio=True)
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
sized = dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1))  # a box without size makes the loss infinite
flip = dict(type='RandomFlip', prob=0.5)  # leave out where left and right differ, as of letters
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
data = dict(data_root=data_root, metainfo=metainfo, data_prefix=dict(img=''))
train_set = dict(data, ann_file=here + 'train.json', pipeline=[*load, sized, resize, flip, dict(type='PackDetInputs')])
val_set = dict(data, ann_file=here + 'val.json', pipeline=[load[0], resize, load[1], pack])
train_dataloader = dict(batch_size={batch}, num_workers={workers}, dataset=train_set)
val_dataloader = test_dataloader = dict(num_workers={workers}, dataset=val_set)
val_evaluator = test_evaluator = dict(ann_file=here + 'val.json')

optim_wrapper = dict(optimizer=dict(lr={lr}))  # for batches of {batch}
auto_scale_lr = dict(base_batch_size={batch})
{schedule}
randomness = dict(seed=0)
'''
BY_EPOCH = """train_cfg = dict(max_epochs={epochs}, val_interval={val_every})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict(type='CosineAnnealingLR', by_epoch=True, end={epochs}, eta_min=1e-6, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval={val_every}), visualization=dict(score_thr=0.3))"""
BY_ITERATION = """train_cfg = dict(max_iters={iterations}, val_interval={val_every})  # {epochs} epochs
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={warmup}),
    dict(type='MultiStepLR', by_epoch=False, end={iterations}, milestones={milestones}, gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval={val_every}))"""
WIDTH = 105  # of a line, without 'metainfo = '
# Prefixes of mmengine for files with the weights of a backbone.
OF_BACKBONES = ('torchvision://', 'open-mmlab://', 'openmmlab://', 'modelzoo://', 'mmcls://')
MILESTONES = (2 / 3, 8 / 9)  # of the iterations, as in the COCO config
# An anchor with half of its area on an ignored object is no background. mmdet's default, -1, makes it one.
IGNORING = 'train_cfg=dict(assigner=dict(ignore_iof_thr=0.5))'


def config_text(
    recipe: Recipe, classes: Sequence[str], source: Path, images: Path, init: str | None, ignored: bool
) -> str:
    """Return the text of the config.

    Args:
        recipe: Its settings.
        classes: In the order of the annotation files' categories.
        source: The data set, named in the first line.
        images: Folder from which the annotation files name the images.
        init: Checkpoint to start from, or URL of one, with some of mmengine's prefixes of a backbone's weights. None
            for random weights.
        ignored: Whether the training set has objects that are not trained on.
    """
    head = f'bbox_head=dict(num_classes={len(classes)}'
    if recipe.small:
        strides = [8 * 2**level for level in range(recipe.levels)]
        head += f', anchor_generator=dict(octave_base_scale={recipe.anchor_scale}, strides={strides})'
    parts = [f'{head})']
    if recipe.small and recipe.levels != 3:
        parts.insert(0, f'neck=dict(num_outs={recipe.levels})')
    backbone = f"backbone=dict(init_cfg=dict(type='Pretrained', checkpoint={init!r}))"
    of_backbone = init is not None and init.startswith(OF_BACKBONES)
    if of_backbone:
        parts.insert(0, backbone)
    if ignored:
        parts.append(IGNORING)
    return TEMPLATE.format(
        source=str(source),
        base=recipe.base,
        start=f'load_from = {init!r}\n' if init and not of_backbone else '',
        images=f'{images.as_posix()}/',
        metainfo=_call(f'classes={_names(classes)}'),
        model=_call(*parts),
        size=recipe.size,
        batch=recipe.batch,
        workers=recipe.workers,
        lr=recipe.lr,
        schedule=_schedule(recipe),
    )


def _call(*arguments: str) -> str:
    """Return ``dict(...)`` on one line if it fits, or else with an argument a line."""
    line = f'dict({", ".join(arguments)})'
    if len(line) <= WIDTH:
        return line
    return 'dict(\n' + ''.join(f'    {argument},\n' for argument in arguments) + ')'


def _names(classes: Sequence[str]) -> str:
    return pformat(tuple(classes), width=WIDTH, compact=True).replace('\n', '\n        ')


def _schedule(recipe: Recipe) -> str:
    if recipe.small:
        return BY_EPOCH.format(epochs=recipe.epochs, val_every=recipe.val_every, warmup=recipe.warmup)
    return BY_ITERATION.format(
        iterations=recipe.iterations,
        epochs=recipe.epochs,
        val_every=recipe.iterations * recipe.val_every // recipe.epochs,
        warmup=recipe.warmup,
        milestones=[round(share * recipe.iterations) for share in MILESTONES],
    )
