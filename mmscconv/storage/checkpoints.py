"""Loading of checkpoints without running code in them, and choice of the checkpoint to resume from."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import __version__ as torch_version

from mmscconv.errors import UserError
from mmscconv.foreign_errors import flat_message, forbidden_object
from mmscconv.storage.disk import replacing

ONLY_WEIGHTS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
ANYTHING = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
LAST = 'last_checkpoint'  # mmengine writes the path of the newest checkpoint into this file


def load_checkpoint(path: str | Path, trusted: bool = False, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint, with ``weights_only=True`` unless it is ``trusted``.

    Besides tensors, mmengine's training state is allowed, which torch's defaults refuse:
    the history of losses, and numpy's scalars and arrays.

    Raises:
        UserError: The file is missing or damaged, or holds other objects.
    """
    if not Path(path).is_file():
        raise UserError(f'checkpoint is not there: {path}')
    torch.serialization.add_safe_globals(_training_state())
    try:
        content = torch.load(path, map_location=map_location, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        name = forbidden_object(error)
        if name is None or trusted:
            raise UserError(
                f'checkpoint cannot be read, it is not a file of torch.save or is damaged: {path}'
            ) from error
        raise UserError(
            f'checkpoint holds a {name}, which may run code when loaded: {path} (pass --trusted if you made it)'
        ) from error
    except (AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        # On corrupt bytes pickle may raise almost any exception.
        reason = flat_message(error)
        raise UserError(f'checkpoint cannot be read, it is cut short or damaged: {path} ({reason})') from error
    if not isinstance(content, dict):
        raise UserError(f'checkpoint holds a {type(content).__name__}, not a dict with a state_dict: {path}')
    if 'state_dict' not in content and isinstance(content.get('model'), Mapping):
        content['state_dict'] = content.pop('model')  # DETR's, timm's files: mmengine looks nowhere else
    return content


def weights_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the weights in a checkpoint's ``content``: under ``state_dict``, or all of it.

    Raises:
        UserError: The value found is not a dict of weights.
    """
    weights = content.get('state_dict', content)
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise UserError(
            f'checkpoint holds a {type(weights).__name__} where its weights should be: {path} (save its state_dict())'
        )
    return weights


def classes_in(content: Mapping[str, Any]) -> list[str] | None:
    """Return the class names in a checkpoint of mmengine, in any case of the key, or of mmdet 2; None without them."""
    meta = content.get('meta') or {}
    data = meta.get('dataset_meta') or {}
    names = data.get('classes', data.get('CLASSES')) or meta.get('CLASSES')
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write ``content``; on any failure ``path`` keeps its old content.

    Raises:
        UserError: ``path`` cannot be written.
    """
    try:
        with replacing(path) as unfinished:
            torch.save(content, unfinished)
    except (OSError, RuntimeError) as error:  # torch reports a missing folder as RuntimeError
        raise UserError(f'cannot write {path}: {flat_message(error)}') from error


def _training_state() -> list[Any]:
    import numpy as np
    from mmengine.logging import HistoryBuffer

    # numpy 1.26 has a numpy._core, too, but without these functions.
    core = 'core' if np.__version__.startswith('1.') else '_core'
    functions = [getattr(np, core).multiarray._reconstruct, getattr(np, core).multiarray.scalar]
    types = [type(np.dtype(name)) for name in ('float32', 'float64', 'int32', 'int64', 'uint32')]
    allowed = [HistoryBuffer, getattr_of_history, np.ndarray, np.dtype, *types, *functions]
    if torch_version >= '2.6':  # older versions accept an object under its own name only
        other = {'core': '_core', '_core': 'core'}[core]
        allowed += [(function, f'numpy.{other}.multiarray.{function.__name__}') for function in functions]
    return allowed


def getattr_of_history(owner: Any, name: str) -> Callable[..., Any]:
    """Return a statistic method of mmengine's HistoryBuffer; pickle stores these methods as calls of ``getattr``.

    Replaces the builtin ``getattr`` while a checkpoint is read: with the builtin, a file
    could reach ``builtins`` and change it.

    Raises:
        pickle.UnpicklingError: Any other owner or name.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise pickle.UnpicklingError(f'GLOBAL getattr on {owner} is not allowed')
    return getattr(owner, name)


# torch looks the function up by this name; a list of pairs (object, name) would need torch 2.6.
getattr_of_history.__module__, getattr_of_history.__name__ = 'builtins', 'getattr'
getattr_of_history.__qualname__ = 'getattr'


def load_safely(trusted: bool = False) -> None:
    """Make mmengine load every local checkpoint with :func:`load_checkpoint`, also on torch before 2.6.

    Downloads (``http://...`` or ``torchvision://...`` in a config) are covered by torch's
    own environment variable. A checkpoint's ``meta.config`` is dropped: mmengine would
    run it as a config on resume.

    Args:
        trusted: Allow checkpoints that hold other objects than weights.
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
    """Return weights without the prefix ``module.`` of data-parallel training."""
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
    """Return the shape of a tensor, None for anything else."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def last_good_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint in ``folder`` that can be read and whose weights are all finite."""
    for path in _newest_first(folder):
        try:
            _require_finite_weights(path, load_checkpoint(path))
        except UserError:
            continue
        return path
    return None


def checkpoint_to_resume(folder: str | Path, warn: Callable[[str], None], trusted: bool = False) -> Path | None:
    """Return the checkpoint in ``folder`` to resume training from, or None if there is no checkpoint at all.

    The checkpoint named in ``last_checkpoint`` comes first, then the others, newest
    first; the first good one is returned. Each bad checkpoint on the way is a line, with
    the reason, to ``warn``. The ``best_*`` checkpoints have no optimizer state and are
    not considered.

    Raises:
        UserError: There are checkpoints, but all are bad.
    """
    folder = Path(folder)
    paths = [path for path in _newest_first(folder) if not path.name.startswith('best_')]
    written = named_last(folder)
    named = None if written is None else folder / written.name
    if written is not None and not paths:  # CheckpointHook's out_dir
        named, folder = written, written.parent
        paths = [path for path in _newest_first(folder) if not path.name.startswith('best_')]
        if not paths:
            raise UserError(f'{named}, the last checkpoint of this training, is not there: put it back, or train anew')
    if named is not None and named not in paths:
        warn(f'not resumed from the last checkpoint, which is not there: {named}')
    paths.sort(key=lambda path: path != named)  # a stable sort keeps the others newest first
    for path in paths:
        try:
            require_resumable(path, trusted)
        except UserError as error:
            warn(f'not resumed from: {error}')
        else:
            return path
    if paths:
        raise UserError(f'none of the {len(paths)} checkpoints in {folder} is good (train anew, without --resume)')
    return None


def named_last(folder: str | Path) -> Path | None:
    """Return the path that mmengine's ``last_checkpoint`` in ``folder`` names, whether it is there or not, or None."""
    try:
        name = (Path(folder) / LAST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Path(name) if Path(name).name else None


def require_resumable(path: str | Path, trusted: bool = False) -> None:
    """Raise UserError unless the checkpoint can be read and holds all the state that resuming needs."""
    content = load_checkpoint(path, trusted)
    lacking = lacking_to_resume(content)
    if lacking:
        raise UserError(f'checkpoint has {lacking}: {path}')
    _require_finite_weights(path, content)


def lacking_to_resume(content: Mapping[str, Any]) -> str | None:
    """Return in words the missing state, besides weights, that resuming needs; None if ``content`` is complete."""
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in content]
    if not missing:
        return None
    return f'no {", ".join(missing)} (to start from its weights, leave out --resume and set load_from)'


def _require_finite_weights(path: str | Path, content: dict[str, Any]) -> None:
    weights = content.get('state_dict')
    if not isinstance(weights, Mapping) or not any(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise UserError(f'checkpoint has no weights: {path}')
    require_finite(path, weights)


def require_finite(path: str | Path, weights: Mapping[str, Any]) -> None:
    """Raise UserError if some of the weights of the checkpoint at ``path`` are not finite."""
    wrong = next((name for name, weight in weights.items() if not all_finite([weight])), None)
    if wrong is not None:
        raise UserError(f'checkpoint has weights that are not finite, such as {wrong}: {path} (take an earlier one)')


def all_finite(values: Iterable[Any]) -> bool:
    """Return whether the floating-point tensors among a state dict's values are finite; other kinds may be there."""
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _newest_first(folder: str | Path) -> list[Path]:
    files = [path for path in Path(folder).glob('*.pth') if path.is_file()]  # no links to files that are gone
    return sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True)
