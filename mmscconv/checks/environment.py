"""Checks that the OpenMMLab stack is installed and that mmcv has its compiled ops."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line

# Import name -> what to install. Both stacks own the same folders; setup.py's extras have the same pins.
STACKS = {
    'onedl': {
        'mmengine': 'onedl-mmengine==0.10.12',
        'mmcv': 'onedl-mmcv==2.3.6',
        'mmdet': 'onedl-mmdetection==3.5.1',
        'mmpretrain': 'onedl-mmpretrain==1.3.6',
    },
    'official': {
        'mmengine': 'mmengine==0.10.7',
        'mmcv': 'mmcv==2.1.0',
        'mmdet': 'mmdet==3.3.0',
        'mmpretrain': 'mmpretrain==1.2.0',
    },
}
DEFAULT_STACK = 'onedl'
TORCH = 'pip install torch==2.11.0 torchvision==0.26.0'


def check_environment() -> None:
    """Raise UserError, with the command that mends it, if the stack cannot run a detector."""
    stack = next(iter(installed_stacks()), DEFAULT_STACK)
    for name in ('torch', 'torchvision', 'mmengine', 'mmcv'):
        _require(name, f'{name} cannot be imported; install the stack: {install_command(stack)}')
    _require('mmcv.ops', f'mmcv was built without its ops, as pip does in isolation. Mend: {rebuild_command(stack)}')
    for name in ('mmdet', 'mmpretrain'):
        _require(name, f'{name} cannot be imported; install the stack: {install_command(stack)}')


def installed_stacks() -> dict[str, list[str]]:
    """Return the installed distributions of each stack that has any, by what pip has recorded."""
    found = {
        stack: [name for name in map(_distribution, pins.values()) if any(metadata.distributions(name=name))]
        for stack, pins in STACKS.items()
    }
    return {stack: names for stack, names in found.items() if names}


def install_command(stack: str) -> str:
    """Return the command that installs ``stack`` beside an installed torch and torchvision."""
    return f'pip install --no-build-isolation {" ".join(STACKS[stack].values())}'


def rebuild_command(stack: str) -> str:
    """Return the command that compiles mmcv's ops against the installed torch."""
    pin = STACKS[stack]['mmcv']
    return f'pip uninstall -y {_distribution(pin)}; pip install --no-cache-dir --no-build-isolation {pin}'


def import_module(name: str) -> ModuleType:
    """Import ``name``; turn any exception, for a package may raise all kinds, into ImportError."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ImportError(first_line(error), name=name) from error


def _require(name: str, remedy: str) -> None:
    try:
        import_module(name)
    except ImportError as error:
        raise UserError(f'{remedy}. ({name}: {error})') from error


def _distribution(pin: str) -> str:
    return pin.partition('==')[0]
