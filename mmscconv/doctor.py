"""Check of the environment: ``python -m mmscconv.doctor``. Exit status 0: no problem; 1: problems.

Each problem comes with the command that mends it. Nothing is changed or downloaded.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mmscconv.checks.environment import (
    DEFAULT_STACK,
    STACKS,
    TORCH,
    import_module,
    install_command,
    installed_stacks,
    rebuild_command,
)

# Each data set's folder under ./data, as in the configs, and the files and folders that it must contain.
DATA = {
    'coco': ('annotations/instances_train2017.json', 'annotations/instances_val2017.json', 'train2017', 'val2017'),
    'VOCdevkit': ('VOC2007/ImageSets/Main/trainval.txt', 'VOC2012/ImageSets/Main/trainval.txt'),
    'imagenet': ('train', 'val'),
    'digits': ('annotations/train.json', 'annotations/val.json'),
    'cells': ('train.json', 'val.json', 'JPEGImages'),
    'cifar10': (),
    'cifar100': (),
    'cifar10_folder': ('train', 'test'),
}
# Runs in a separate process: an extension built for another torch may crash instead of raising.
NMS_PROBE = """
import torch
from mmcv.ops import nms
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
scores = torch.tensor([0.9, 0.8, 0.7])
for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
    kept = nms(boxes.to(device), scores.to(device), 0.5)[1].tolist()
    assert kept == [0, 2], f'NMS on {device} keeps boxes {kept} instead of [0, 2]'
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` is the command that mends the problem, '' if there is no problem."""

    name: str
    value: str
    remedy: str = ''


def examine() -> Iterator[Finding]:
    """Yield the findings, in the order in which problems have to be mended."""
    stacks = installed_stacks()
    stack = next(iter(stacks), DEFAULT_STACK)
    yield _python()
    yield from (_package('torch', TORCH, least=(2, 4)), _package('torchvision', _torchvision_command()))
    yield _package('numpy', f"pip install --force-reinstall 'numpy{'<2' if stack == 'official' else ''}'")
    opencv = 'opencv-python opencv-python-headless'
    yield _package('cv2', f'pip uninstall -y {opencv}; pip install opencv-python-headless', label='opencv')
    yield _setuptools(stack)
    yield _stack(stacks)
    for name, pin in STACKS[stack].items():
        again = f'pip install --force-reinstall --no-deps --no-build-isolation {pin}'
        yield _package(name, again if pin.partition('==')[0] in stacks.get(stack, ()) else install_command(stack))
    ops = _ops(stack)
    yield ops
    gpu = _cuda()
    yield from (gpu, _triton(), _compiler(needed=bool(ops.remedy) or gpu.value.startswith('CUDA')), _kernels())
    yield from _data(Path('data'))


def main() -> int:
    """Print the report; return the exit status."""
    problems = []
    for finding in examine():
        print(f'{"PROBLEM" if finding.remedy else "":8}{finding.name:13} {finding.value}', flush=True)
        if finding.remedy:
            problems.append(finding.remedy)
    if not problems:
        print('\nNothing is wrong.')
        return 0
    print('\nTo mend, in this order:')
    for remedy in dict.fromkeys(problems):
        print(f'    {remedy}')
    return 1


def _python() -> Finding:
    old = sys.version_info < (3, 10)
    return Finding('python', platform.python_version(), 'python3.11 -m venv .venv && . .venv/bin/activate' * old)


def _package(name: str, remedy: str, label: str = '', least: tuple[int, int] = (0, 0)) -> Finding:
    """Import a package and report its version."""
    try:
        # Packages print and warn when imported; here only a failed import counts.
        with _silence():
            version = str(import_module(name).__version__)
    except ImportError as error:
        return Finding(label or name, f'cannot be imported: {error}', remedy)
    except AttributeError:
        return Finding(label or name, 'imported, but it is not the real package: it has no version', remedy)
    if _minor(version) < least:
        return Finding(label or name, f'{version} is too old: at least {least[0]}.{least[1]} is needed', remedy)
    return Finding(label or name, version)


def _torchvision_command() -> str:
    """Return the command that installs the torchvision for the installed torch: 0.(n + 15) for 2.n."""
    try:
        major, minor = _minor(metadata.version('torch'))
    except metadata.PackageNotFoundError:
        return TORCH
    return f"pip install --force-reinstall --no-deps 'torchvision==0.{minor + 15}.*'" if major == 2 else TORCH


def _setuptools(stack: str) -> Finding:
    try:
        version = metadata.version('setuptools')
    except metadata.PackageNotFoundError:
        return Finding('setuptools', 'not installed; only building needs it')
    if stack == 'official' and _minor(version) >= (82, 0):
        problem = f'{version} has no pkg_resources, which the official mmengine imports'
        return Finding('setuptools', problem, "pip install 'setuptools<82'")
    return Finding('setuptools', version)


def _stack(stacks: dict[str, list[str]]) -> Finding:
    if len(stacks) > 1:
        names = [name for found in stacks.values() for name in found]
        remedy = f'pip uninstall -y {" ".join(names)}; {install_command(DEFAULT_STACK)}'
        return Finding('stack', f'both, and each overwrites the files of the other: {", ".join(names)}', remedy)
    if not stacks:
        return Finding('stack', 'none', install_command(DEFAULT_STACK))
    ((stack, names),) = stacks.items()
    return Finding('stack', f'{stack} ({", ".join(names)})')


def _ops(stack: str) -> Finding:
    """Run NMS on three boxes and compare the boxes that it keeps."""
    done = subprocess.run([sys.executable, '-c', NMS_PROBE], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Finding('mmcv ops', 'NMS keeps the right boxes')
    lines = done.stderr.strip().splitlines()
    reason = f'ended by signal {-done.returncode}' if done.returncode < 0 else lines[-1] if lines else 'failed'
    return Finding('mmcv ops', f'do not work: {reason}', rebuild_command(stack))


def _cuda() -> Finding:
    def found() -> str:
        import torch

        if torch.cuda.is_available():
            return f'CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}'
        return f'none: CPU only (torch is built for {f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"})'

    return Finding('GPU', _tried(found))


def _triton() -> Finding:
    return Finding('triton', _tried(lambda: import_module('triton').__version__))


def _compiler(needed: bool) -> Finding:
    """Look for a compiler: building mmcv needs a C++ compiler, Triton's launchers a C compiler."""
    names = (os.environ.get('CC', 'cc'), 'gcc', 'clang')
    path = next(filter(None, map(shutil.which, names)), None)
    if path:
        return Finding('C compiler', path)
    return Finding('C compiler', 'none on PATH', 'apt-get install -y build-essential' if needed else '')


def _kernels() -> Finding:
    def found() -> str:
        from mmscconv.ops.compiled import multiplies_in_tiles, unavailable

        reason = unavailable()
        if reason:
            return f'none, the plain form runs: {reason}'
        return f'compiled{", products of bf16 maps in tiles of AMX" if multiplies_in_tiles() else ""}'

    return Finding('CPU kernels', _tried(found))


def _data(folder: Path) -> Iterator[Finding]:
    found = {name: parts for name, parts in DATA.items() if (folder / name).is_dir()}
    if not found:
        yield Finding('data', f'no data set in ./{folder}; the tools also take --data-root')
    for name, parts in found.items():
        missing = [part for part in parts if not (folder / name / part).exists()]
        yield Finding(f'{folder}/{name}', f'incomplete, without {", ".join(missing)}' if missing else 'found')


def _tried(measure: Callable[[], str]) -> str:
    try:
        with _silence():
            return measure()
    except Exception as error:
        return f'cannot tell: {error}'


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def _minor(version: str) -> tuple[int, int]:
    """Return (major, minor); (0, 0) unless the version begins with two numbers."""
    parts = version.split('.')[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(p.isdigit() for p in parts) else (0, 0)


if __name__ == '__main__':
    sys.exit(main())
