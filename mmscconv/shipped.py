"""Search for the configs and weights that come with the package, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from mmscconv.checks.environment import DEFAULT_STACK, install_command
from mmscconv.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

PACKAGE = Path(__file__).resolve().parent


def configs_folder() -> Path:
    """Return the folder of the shipped configs: inside the package in a wheel, beside it in a checkout.

    Raises:
        UserError: Both folders are missing; the package was copied without them.
    """
    return _folder('configs')


def _folder(name: str) -> Path:
    for folder in (PACKAGE / '.mim' / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(f'the {name} of mmscconv are not beside the package in {PACKAGE}: install it with pip')


def list_configs(pattern: str | None = None) -> list[str]:
    """Return the names of the shipped configs, sorted.

    Args:
        pattern: Shell-style wildcards that the whole name must match, such as
            ``'retinanet_*'`` or ``'cifar/*_cifar100'``; None for all.

    Returns:
        Paths under ``configs`` without ``.py``. Files in ``_base_`` folders are parts of
        configs and left out.
    """
    folder = configs_folder()
    paths = (path.relative_to(folder).with_suffix('') for path in folder.rglob('*.py'))
    names = sorted(path.as_posix() for path in paths if '_base_' not in path.parts)
    return [name for name in names if pattern is None or fnmatch(name, pattern)]


def config_file(name: str) -> Path:
    """Return the file of a shipped config; name and errors as of :func:`get_config`."""
    names = list_configs()
    wanted = name.removesuffix('.py')
    found = [known for known in names if wanted in (known, Path(known).name)]
    if not found:
        raise UserError(f'mmscconv has no config {name!r}: {_hint(wanted, names, "list_configs")}')
    return configs_folder() / f'{found[0]}.py'


def _hint(wanted: str, names: Sequence[str], function: str) -> str:
    near = difflib.get_close_matches(Path(wanted).name, [Path(known).name for known in names], n=3)
    return f'did you mean {", ".join(near)}?' if near else f'mmscconv.{function}() names them all'


def list_weights() -> list[str]:
    """Return the names of the shipped weights, sorted: those of the configs that they were trained with."""
    return sorted(_weights())


def _weights() -> dict[str, Path]:
    """Return the files of the shipped weights, ``<config>-<8 hex digits>.pth``, by config."""
    return {file.stem.rpartition('-')[0]: file for file in _folder('weights').glob('*-????????.pth')}


def get_weights(name: str) -> Path:
    """Return the file of shipped weights, for ``load_from``, ``init_cfg`` or ``torch.load(weights_only=True)``.

    Args:
        name: Name of the config, as in :func:`list_weights`.

    Raises:
        UserError: No such weights (the message names the nearest ones).
    """
    files = _weights()
    if name not in files:
        raise UserError(f'mmscconv has no weights of {name!r}: {_hint(name, sorted(files), "list_weights")}')
    return files[name]


def get_config(name: str) -> Config:
    """Read a shipped config; its file is ``get_config(name).filename``.

    Args:
        name: As in :func:`list_configs`; the folder and ``.py`` may be left out.

    Raises:
        UserError: No such config (the message names the nearest ones), or mmengine is missing.
    """
    file = config_file(name)
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise UserError(
            f'configs are read by mmengine, which cannot be imported; install the stack: '
            f'{install_command(DEFAULT_STACK)}. (mmengine: {error})'
        ) from error
    return Config.fromfile(file)
