"""Hardware and software of a measurement."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mmscconv.checks.device import device_of

VARIABLES = (
    'ATEN_', 'CC', 'DNNL_', 'GOMP_', 'KMP_', 'LD_PRELOAD', 'MALLOC_', 'MMSCCONV_', 'OMP_', 'ONEDNN_', 'TORCHINDUCTOR_',
    'TRITON_',
)  # fmt: skip


def device_to_measure(name: str | None) -> torch.device:
    """Return the device called ``name`` (:func:`mmscconv.checks.device.device_of`), a GPU as the current one.

    Kernels, libraries and streams that are given no device use the current one.

    Raises:
        UserError: There is no such device here.
    """
    device = device_of(name)
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)
    return device


def environment(device: torch.device) -> dict[str, str]:
    """Return labels and texts for the head of a report."""
    facts = {
        'command': shlex.join(['python', *_without_folder(sys.argv)]),
        'date': datetime.datetime.now().astimezone().isoformat(timespec='minutes'),
        'CPU': f'{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, '
        f'PyTorch takes it for {torch.backends.cpu.get_cpu_capability()}',
        'RAM': _ram(),
        'GPU': torch.cuda.get_device_name(device) if device.type == 'cuda' else 'not used',
        'Python': platform.python_version(),
        'torch': torch.__version__,
    }
    if device.type == 'cuda':
        facts['CUDA, cuDNN'] = f'{torch.version.cuda}, {torch.backends.cudnn.version()}'
        facts['cuDNN benchmark'] = str(torch.backends.cudnn.benchmark)
        facts['TF32'] = f'matmul {torch.backends.cuda.matmul.allow_tf32}, cuDNN {torch.backends.cudnn.allow_tf32}'
    for package in ('onnxruntime', 'openvino', 'ncnn', 'pnnx', 'triton'):
        facts[package] = _version(package)
    variables = [f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)]
    facts['variables'] = ' '.join(variables) or f'none of {", ".join(f"{v}*" for v in VARIABLES)}'
    return facts


def _version(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return 'not installed'
    try:
        return version(package)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return 'version unknown'


def _without_folder(argv: list[str]) -> list[str]:
    """Return the command line with the tool's path relative to the repository."""
    return [str(Path('tools') / Path(argv[0]).name), *argv[1:]]


def _cpu_model() -> str:
    """Return the processor's name, on x86 with family and model, as a virtual machine may hide the full name."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(reversed([(k.strip(), v.strip()) for k, _, v in (line.partition(':') for line in lines)]))
    named = [facts.get('model name', platform.machine())]
    return ' '.join(named + [f'{key.split()[-1]} {facts[key]}' for key in ('cpu family', 'model') if key in facts])


def _ram() -> str:
    try:
        return f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GiB'
    except (OSError, ValueError):
        return 'unknown'
