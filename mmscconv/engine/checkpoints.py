"""Loads checkpoints without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from mmscconv.engine.errors import UserError


def load_checkpoint(path: str | Path, trusted: bool = False) -> dict[str, Any]:
    """Read a checkpoint to the CPU, with ``weights_only=True`` unless it is ``trusted``.

    Allowed besides tensors is what mmengine keeps of a training's state: its history
    of losses, and numpy's scalars and arrays. torch allows none of that by itself.

    Raises:
        UserError: No such file, one that is damaged, or one that holds other objects.
    """
    if not Path(path).is_file():
        raise UserError(f'checkpoint is not there: {path}')
    torch.serialization.add_safe_globals(_training_state())
    try:
        content = torch.load(path, map_location='cpu', weights_only=not trusted)
    except pickle.UnpicklingError as error:
        found = [line for line in str(error).splitlines() if 'GLOBAL' in line]
        if not found or trusted:
            raise UserError(f'checkpoint cannot be read, it is no file of torch.save or is damaged: {path}') from error
        name = found[0].split('GLOBAL ')[1].split()[0]
        raise UserError(
            f'checkpoint holds a {name}, which may run code when loaded: {path} (pass --trusted if you made it)'
        ) from error
    except (EOFError, RuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'checkpoint cannot be read, it is cut short or damaged: {path} ({reason})') from error
    if not isinstance(content, dict):
        raise UserError(f'checkpoint holds a {type(content).__name__}, not a dict with a state_dict: {path}')
    return content


def _training_state() -> list[Any]:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    core: Any = np._core if hasattr(np, '_core') else np.core
    multiarray = core.multiarray
    types = [type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint32')]
    # HistoryBuffer keeps bound methods, which pickle writes as getattr.
    return [HistoryBuffer, getattr, multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *types]


def last_good_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint in ``folder`` that can be read and whose weights are all finite."""
    for path in sorted(Path(folder).glob('*.pth'), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            weights = load_checkpoint(path).get('state_dict', {})
        except UserError:
            continue
        if weights and all(w.isfinite().all() for w in weights.values() if w.is_floating_point()):
            return path
    return None
