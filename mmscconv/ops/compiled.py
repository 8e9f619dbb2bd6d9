"""The CPU kernels of ``csrc/``: compiled on first use with the machine's C compiler, called through ctypes.

Plain C without the headers of PyTorch or ONNX Runtime compiles in a few seconds and
does not depend on their ABIs.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

SOURCES = Path(__file__).parent / 'csrc'
# NaN and infinity keep their meaning: no -ffast-math. gnu11 and not c11, which rules out fused multiply-adds.
FLAGS = ('-O3', '-std=gnu11', '-fPIC', '-fno-math-errno', '-fno-trapping-math')


@dataclass(frozen=True)
class Library:
    """What is compiled together.

    Attributes:
        name: Of the file.
        sources: Below ``csrc/``, as patterns.
        flags: To compile with, in order of preference: a compiler may lack OpenMP, or not know the machine it runs on.
        links_openmp: Whether what runs the loops is the compiler's OpenMP, or among the sources.
    """

    name: str
    sources: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    links_openmp: bool = True

    @property
    def files(self) -> list[Path]:
        """The sources."""
        return sorted(file for pattern in self.sources for file in SOURCES.glob(pattern))


KERNELS = Library('kernels', ('*.c',), (('-march=native', '-fopenmp'), ('-march=native', '-fopenmp-simd'), ()))
# mmscconv::SCConv for ONNX Runtime, on whose threads it runs.
ONNXRUNTIME_OP = Library(
    'onnxruntime_op',
    ('scconv.c', 'squeeze.c', 'transform.c', 'onnxruntime/*.c'),
    (('-march=native', '-fopenmp'), ('-fopenmp',)),
    links_openmp=False,
)

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_FLOAT, _DOUBLE = ctypes.c_float, ctypes.c_double
_ARGUMENTS = {
    'pack': [_POINTER, *[_LONG] * 5, _POINTER],
    'pack_transform': [*[_POINTER] * 4, _INT, _POINTER],
    'transform_rows': [*[_POINTER] * 4, _LONG, _INT, _POINTER],
    'weights_of_rows': [_POINTER, _LONG, _POINTER, _INT, *[_POINTER] * 3],
    'sru_forward': [_POINTER] * 3 + [_LONG] * 3 + [_INT, _LONG, _DOUBLE, _FLOAT, _INT, _INT] + [_POINTER] * 3,
    'sru_backward': [_POINTER] * 6 + [_LONG] * 3 + [_INT, _LONG, _FLOAT, _INT, _INT] + [_POINTER] * 3,
    'fuse_forward': [_POINTER] * 6 + [_LONG] * 3 + [_INT] + [_LONG] * 3 + [_INT] + [_POINTER] * 2,
    'sru_squeeze': [*[_POINTER] * 7, *[_LONG] * 5, _DOUBLE, _FLOAT, _INT, *[_LONG] * 5, _INT, *[_POINTER] * 4],
    'sru_squeeze_backward': [*[_POINTER] * 9, *[_LONG] * 4, _FLOAT, _INT, *[_LONG] * 3, _INT, *[_POINTER] * 5],
    'scconv': [*[_POINTER] * 12, _LONG, _LONG, _DOUBLE, _FLOAT, _INT, _LONG, _POINTER, _INT, _INT, _POINTER],
    'transform_fuse': [*[_POINTER] * 9, _INT, _INT, *[_POINTER] * 2],
    'norm_fuse_sums': [*[_POINTER] * 4, *[_LONG] * 4, _INT, _POINTER],
    'norm_fuse_forward': [*[_POINTER] * 4, *[_LONG] * 4, _INT, _POINTER],
    'norm_fuse_backward': [*[_POINTER] * 5, *[_LONG] * 4, _INT, *[_POINTER] * 3],
    'transform_fuse_backward': [*[_POINTER] * 9, _INT, *[_POINTER] * 6],
    'fuse_backward': [_POINTER] * 2
    + [_INT]
    + [_POINTER] * 3
    + [_LONG] * 3
    + [_INT]
    + [_LONG] * 3
    + [_INT]
    + [_POINTER] * 4,
}


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels cannot run on this machine, or None; compiles them where that is still to be done."""
    built = build(KERNELS)
    return built if isinstance(built, str) else None


@functools.cache
def build(library: Library) -> Path | str:
    """Return the compiled library, or the reason why there is none."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get('CC'), 'gcc', 'cc', 'clang')))), None)
    if compiler is None:
        return 'no C compiler was found: install gcc or clang, or name one in CC'
    digest = hashlib.sha256('\n'.join((compiler, _cpu(), *FLAGS, str(library))).encode())
    for path in (*library.files, *sorted(SOURCES.glob('**/*.h'))):
        digest.update(path.read_bytes())
    name = f'{library.name}-{digest.hexdigest()[:16]}.so'
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            return folder / name
        scratch = Path(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        return f'{error}: name a folder that can be written in MMSCCONV_CACHE_DIR'
    try:
        for optional in library.flags:
            message = _compile(compiler, optional, library, scratch / name)
            if message is None:
                # At once, for several processes may compile at the same time.
                (scratch / name).replace(folder / name)
                return folder / name
        return f'{compiler} failed: {message}'
    except OSError as error:
        return f'{compiler} failed: {error}'
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _compile(compiler: str, optional: Sequence[str], library: Library, file: Path) -> str | None:
    """Write the library; return the compiler's message if it fails."""

    def run(*arguments: object) -> str | None:
        done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)
        return None if done.returncode == 0 else done.stderr.strip() or 'no message'

    sources = library.files
    objects = [file.with_name(f'{source.stem}.o') for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(sources, objects, strict=True)
        messages = list(pool.map(lambda pair: run(*FLAGS, *optional, '-c', pair[0], '-o', pair[1]), pairs))
    # What is missing shows now and not when the library is loaded.
    link = (*FLAGS, *optional) if library.links_openmp else ('-Wl,-z,defs',)
    return next(filter(None, messages), None) or run('-shared', *link, *objects, '-o', file, '-lm')


def cache_folder() -> Path:
    """Return where compiled kernels are kept: MMSCCONV_CACHE_DIR, or mmscconv in the user's cache folder."""
    chosen = os.environ.get('MMSCCONV_CACHE_DIR')
    if chosen:
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmscconv'


def _cpu() -> str:
    """Return what tells machines apart that share a home folder but not their instructions."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))


@functools.cache
def _library() -> ctypes.CDLL:
    built = build(KERNELS)
    if isinstance(built, str):
        raise RuntimeError(built)
    library = ctypes.CDLL(str(built))
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def call(name: str, *arguments: Tensor | ctypes.Array[ctypes.c_int64] | float | None) -> None:
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    if getattr(_library(), name)(*values):
        raise MemoryError(f'{name}: no memory for its workspace')
