"""Flags of tools/train.py and tools/test.py that change a config: mixed precision, learning rate, TTA, drawing."""

from __future__ import annotations

import logging
from pathlib import Path

from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import DumpResults
from mmengine.logging import print_log

from mmscconv.configuration import innermost_dataset
from mmscconv.errors import UserError
from mmscconv.hooks.matching_checkpoint import images_per_step
from mmscconv.optim import multiplies_bf16


def use_amp(cfg: Config) -> None:
    """Train with automatic mixed precision."""
    cfg.optim_wrapper.type = 'AmpOptimWrapper'


def fit_amp_to_device(cfg: Config) -> None:
    """Let a config with mixed precision run here: fp16 with a loss scaler on a GPU, bf16 without one on a CPU.

    Raises:
        UserError: fp16 is asked for by ``optim_wrapper.dtype``, and there is no GPU.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') != 'AmpOptimWrapper':
        return
    if get_device() != 'cpu':
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    dtype = str(wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    if dtype != 'bfloat16':
        raise UserError(f'mixed precision on a CPU is bfloat16, but optim_wrapper.dtype is {dtype}: leave it out')
    for key in ('dtype', 'loss_scale', 'use_fsdp'):
        wrapper.pop(key, None)
    wrapper.type = 'CPUAmpOptimWrapper'
    if not multiplies_bf16():
        print_log(
            'This processor has no bf16 instructions: --amp may train slower than fp32.',
            logger='current',
            level=logging.WARNING,
        )


def scale_lr(cfg: Config) -> None:
    """Multiply the lr by (batch x accumulated batches x devices) / ``auto_scale_lr.base_batch_size``.

    Raises:
        UserError: The config has no ``auto_scale_lr.base_batch_size``.
    """
    if _base_batch(cfg) is None:
        raise UserError(f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {cfg.filename}')
    cfg.auto_scale_lr.enable = True


def warn_of_other_batch(cfg: Config) -> None:
    """Warn if a step has another number of images than the learning rate is meant for."""
    batch = images_per_step(cfg)
    base_batch = _base_batch(cfg)
    if base_batch and batch != base_batch:
        print_log(
            f'Total batch {batch}, but the learning rate is meant for {base_batch}: pass --auto-scale-lr to scale it.',
            logger='current',
            level=logging.WARNING,
        )


def _base_batch(cfg: Config) -> int | None:
    return cfg.get('auto_scale_lr', {}).get('base_batch_size')


def use_tta(cfg: Config) -> None:
    """Test with the config's test-time augmentation, ``tta_model`` and ``tta_pipeline``.

    Raises:
        UserError: The config lacks one of the two.
    """
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UserError(f'--tta needs tta_model and tta_pipeline in {cfg.filename}')
    innermost_dataset(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
    cfg.model = dict(**cfg.tta_model, module=cfg.model)


def draw(cfg: Config, show: bool, folder: str | None, seconds: float) -> None:
    """Switch on the visualization hook, which mmdet and mmpretrain configure differently.

    Args:
        cfg: Config of a detector or a classifier.
        show: Open a window for each image.
        folder: Folder to draw into, below the work dir unless absolute; None to write no images.
        seconds: Seconds that each window stays open.

    Raises:
        UserError: The config has no ``default_hooks.visualization``.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError(f'--show and --show-dir need default_hooks.visualization in {cfg.filename}')
    hook.update(show=show, wait_time=seconds)
    if hook.type == 'DetVisualizationHook':
        hook.update(type='DetectionDrawingHook', draw=True, test_out_dir=folder)
    else:
        if hook.type == 'VisualizationHook':
            hook.type = 'ClassDrawingHook'
        hook.update(enable=True, interval=1, out_dir=folder and str(Path(cfg.work_dir) / folder))


def dump_metric(cfg: Config, path: str) -> DumpResults:
    """Return the metric that writes predictions to ``path``; mmdet's own packs its masks."""
    return (DumpDetResults if cfg.get('default_scope') == 'mmdet' else DumpResults)(out_file_path=path)
