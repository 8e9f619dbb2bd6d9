"""Loads checkpoints without running what is in them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
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
    except (EOFError, OSError, RuntimeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'checkpoint cannot be read, it is cut short or damaged: {path} ({reason})') from error
    if not isinstance(content, dict):
        raise UserError(f'checkpoint holds a {type(content).__name__}, not a dict with a state_dict: {path}')
    return content


def _training_state() -> list[Any]:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    types = [type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint32')]
    # HistoryBuffer keeps bound methods, which pickle writes as getattr.
    return [HistoryBuffer, getattr, multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *types]


def last_good_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint in ``folder`` that can be read and whose weights are all finite."""
    for path in _newest_first(folder):
        try:
            _require_finite(path, load_checkpoint(path))
        except UserError:
            continue
        return path
    return None


def checkpoint_to_resume(folder: str | Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint in ``folder`` from which a training can go on, or None if there is none at all.

    That is the one that ``last_checkpoint`` names, if it is good. Each newer one that
    is left out, with the reason, is a line to ``warn``. Checkpoints without an
    optimizer's state, such as the best ones, are not meant for resuming.

    Raises:
        UserError: There are checkpoints, and none of them is good.
    """
    folder = Path(folder)
    paths = [path for path in _newest_first(folder) if not path.name.startswith('best_')]
    try:
        named = folder / Path((folder / 'last_checkpoint').read_text().strip()).name
    except OSError:
        named = None
    paths.sort(key=lambda path: path != named)  # stable: the newest of the others come after it
    for path in paths:
        try:
            require_resumable(path)
        except UserError as error:
            warn(f'not resumed from: {error}')
        else:
            return path
    if paths:
        raise UserError(f'none of the {len(paths)} checkpoints in {folder} is good (train anew, without --resume)')
    return None


def require_resumable(path: str | Path) -> None:
    """Raise UserError if the checkpoint cannot be read or does not hold all that a training goes on from."""
    content = load_checkpoint(path)
    missing = [key for key in ('meta', 'state_dict', 'optimizer', 'message_hub') if key not in content]
    if missing:
        raise UserError(f'checkpoint has no {", ".join(missing)}, so that no training can go on from it: {path}')
    _require_finite(path, content)


def _require_finite(path: str | Path, content: dict[str, Any]) -> None:
    weights = content.get('state_dict')
    if not weights or not all(w.isfinite().all() for w in weights.values() if w.is_floating_point()):
        raise UserError(f'checkpoint has no weights, or some that are not finite: {path}')


def _newest_first(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).glob('*.pth'), key=lambda path: path.stat().st_mtime_ns, reverse=True)
