"""A training's work dir: its config, checkpoint and log."""

from __future__ import annotations

from pathlib import Path

from mmscconv.errors import UserError
from mmscconv.storage.checkpoints import named_last


def find_config(work_dir: Path) -> Path:
    """Return the config that mmengine has copied into ``work_dir``, the newest of several.

    Raises:
        UserError: No such folder, or no config in it.
    """
    if not work_dir.is_dir():
        raise UserError(f'work dir is not there: {work_dir} (train first, or check the path)')
    configs = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime_ns)
    if not configs:
        raise UserError(f'no config (*.py) of a training is in {work_dir}')
    return configs[-1]


def find_checkpoint(work_dir: Path) -> Path:
    """Return the last checkpoint of ``work_dir``, also where the folder has been moved or CheckpointHook has another.

    Raises:
        UserError: There is no checkpoint.
    """
    written = named_last(work_dir)
    for path in () if written is None else (work_dir / written.name, written):
        if path.is_file():
            return path
    checkpoints = sorted(work_dir.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns)
    if not checkpoints:
        raise UserError(f'no checkpoint (*.pth) is in {work_dir}: train first, or pass --checkpoint')
    return checkpoints[-1]
