"""Is the OpenMMLab stack there, and does mmcv have its compiled ops?"""

from __future__ import annotations

import importlib

from mmscconv.engine.errors import UserError

INSTALL = "pip install --no-build-isolation 'mmscconv[onedl]' (README, 'Install')"
REBUILD = (
    'mmcv was built without its ops, which happens where pip builds it in isolation. Mend: pip uninstall -y onedl-mmcv '
    'mmcv; pip install --no-cache-dir --no-build-isolation onedl-mmcv==2.3.6, with torch installed first'
)


def check_environment() -> None:
    """Raise UserError with the mending command if the stack cannot run a detector."""
    for name in ('torch', 'torchvision', 'mmengine', 'mmcv'):
        _import(name, f'{name} cannot be imported; install the stack: {INSTALL}')
    _import('mmcv.ops', REBUILD)
    for name in ('mmdet', 'mmpretrain'):
        _import(name, f'{name} cannot be imported; install the stack: {INSTALL}')


def _import(name: str, remedy: str) -> None:
    try:
        importlib.import_module(name)
    except (ImportError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f'{remedy}. ({name}: {reason})') from error
