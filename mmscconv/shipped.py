"""Search for the configs that come with the package, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
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
    for folder in (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise UserError(f'the configs of mmscconv are not beside the package in {PACKAGE}: install it with pip')


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


def get_config(name: str) -> Config:
    """Read a shipped config; its file is ``get_config(name).filename``.

    Args:
        name: As in :func:`list_configs`; the folder and ``.py`` may be left out.

    Raises:
        UserError: No such config (the message names the nearest ones), or mmengine is missing.
    """
    names = list_configs()
    wanted = name.removesuffix('.py')
    found = [known for known in names if wanted in (known, Path(known).name)]
    if not found:
        near = difflib.get_close_matches(Path(wanted).name, [Path(known).name for known in names], n=3)
        hint = f'did you mean {", ".join(near)}?' if near else 'mmscconv.list_configs() names them all'
        raise UserError(f'mmscconv has no config {name!r}: {hint}')
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise UserError(
            f'configs are read by mmengine, which cannot be imported; install the stack: '
            f'{install_command(DEFAULT_STACK)}. (mmengine: {error})'
        ) from error
    return Config.fromfile(configs_folder() / f'{found[0]}.py')
