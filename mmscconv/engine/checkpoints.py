"""Loads checkpoints without running what is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmscconv.engine.errors import UserError
from mmscconv.engine.files import replacing

ONLY_WEIGHTS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
ANYTHING = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def load_checkpoint(path: str | Path, trusted: bool = False, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True`` unless it is ``trusted``.

    Allowed besides tensors is what mmengine keeps of a training's state: its history
    of losses, and numpy's scalars and arrays. torch allows none of that by itself.

    Raises:
        UserError: No such file, one that is damaged, or one that holds other objects.
    """
    if not Path(path).is_file():
        raise UserError(f'checkpoint is not there: {path}')
    torch.serialization.add_safe_globals(_training_state())
    try:
        content = torch.load(path, map_location=map_location, weights_only=not trusted)
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


def weights_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the weights in a checkpoint's ``content``: under ``state_dict`` or ``model``, or all of it.

    Raises:
        UserError: What stands there is no dict of weights.
    """
    weights = content.get('state_dict', content.get('model', content))
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise UserError(
            f'checkpoint holds a {type(weights).__name__} where its weights should be: {path} (save its state_dict())'
        )
    return weights


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write ``content`` at once: whatever happens, ``path`` is whole or as it was.

    Raises:
        UserError: It cannot be written.
    """
    try:
        with replacing(path) as unfinished:
            torch.save(content, unfinished)
    except (OSError, RuntimeError) as error:  # torch reports a missing folder as RuntimeError
        raise UserError(f'cannot write {path}: {" ".join(str(error).split())}') from error


def _training_state() -> list[Any]:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    types = [type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint32')]
    return [HistoryBuffer, getattr_of_history, multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *types]


def getattr_of_history(owner: Any, name: str) -> Callable:
    """Return a statistic of mmengine's HistoryBuffer, for whose functions pickle writes ``getattr``.

    It takes the place of the builtin while a checkpoint is read: with that one, a
    file could reach ``builtins`` and change it.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr on {owner} is not allowed')
    return getattr(owner, name)


# The name by which torch finds it; a list of pairs (object, name) would need torch 2.6.
getattr_of_history.__module__, getattr_of_history.__name__ = 'builtins', 'getattr'
getattr_of_history.__qualname__ = 'getattr'


def load_safely(trusted: bool = False) -> None:
    """Make mmengine load every checkpoint of this process by :func:`load_checkpoint`, also on torch before 2.6.

    What is fetched, because a config names ``http://...`` or ``torchvision://...``, is
    covered by torch's own switch. A checkpoint's ``meta.config`` is left out, as
    mmengine would run it as a config when it resumes.
    """
    from mmengine.runner import CheckpointLoader

    def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
        content = load_checkpoint(Path(filename).expanduser(), trusted, map_location)
        if not trusted and isinstance(content.get('meta'), dict):
            content['meta'].pop('config', None)
        return content

    CheckpointLoader.register_scheme('', load_from_local, force=True)
    os.environ.pop(ONLY_WEIGHTS, None)
    if not trusted:
        os.environ.pop(ANYTHING, None)
        os.environ[ONLY_WEIGHTS] = '1'
        torch.serialization.add_safe_globals(_training_state())


def unwrapped(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights without the prefix that data-parallel training puts before their names."""
    return {key.removeprefix('module.'): value for key, value in weights.items()}


def check_pretrained(model: torch.nn.Module, trusted: bool = False) -> None:
    """Raise UserError if a local ``init_cfg=dict(type='Pretrained')`` shares no weight with its module."""
    for name, module in model.named_modules():
        inits = getattr(module, 'init_cfg', None)
        for init in [inits] if isinstance(inits, Mapping) else inits or []:
            path = init.get('checkpoint') or ''
            if init.get('type') != 'Pretrained' or '://' in path:
                continue
            have = unwrapped(weights_of(load_checkpoint(path, trusted), path))
            prefix = f'{init["prefix"].rstrip(".")}.' if init.get('prefix') else ''
            shapes = {key.removeprefix(prefix): shape_of(v) for key, v in have.items() if key.startswith(prefix)}
            want = {key: tuple(value.shape) for key, value in module.state_dict().items()}
            if not any(shapes.get(key) == shape for key, shape in want.items()):
                raise UserError(
                    f'pretrained checkpoint shares no weight with model.{name}: {path} has {next(iter(have), "none")}, '
                    f'the module has {next(iter(want))} (check init_cfg.prefix, {prefix!r} here, and the model)'
                )


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor, None of anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


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
