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

from mmscconv.ops.prototypes import MAP_DTYPES, Argument, Parameter, prototypes

SOURCES = Path(__file__).parent / 'csrc'
# No -ffast-math: NaN and infinity keep their meaning. Not c11: it rules out fused multiply-adds.
FLAGS = ('-O3', '-std=gnu11', '-fPIC', '-fno-math-errno', '-fno-trapping-math')
# Compilers for x86 prefer half of AVX-512's width on Intel, where the whole is up to a quarter faster.
WIDE = '-mprefer-vector-width=512'


@dataclass(frozen=True)
class Library:
    """A shared library and its sources.

    Attributes:
        name: Name of the file.
        sources: Patterns below ``csrc/``.
        flags: Compiler flags in order of preference: a compiler may lack OpenMP, or not know the machine it runs on.
        links_openmp: Whether the compiler's OpenMP runs the loops; if not, one of the sources does.
    """

    name: str
    sources: tuple[str, ...]
    flags: tuple[tuple[str, ...], ...]
    links_openmp: bool = True

    @property
    def files(self) -> list[Path]:
        """The sources."""
        return sorted(file for pattern in self.sources for file in SOURCES.glob(pattern))


# Clang for Arm and GCC for some processors refuse -march=native; compilers for Arm refuse WIDE as well.
KERNELS = Library(
    'kernels',
    ('*.c',),
    (
        ('-march=native', WIDE, '-fopenmp'),
        ('-march=native', WIDE, '-fopenmp-simd'),
        ('-march=native', '-fopenmp'),
        ('-march=native', '-fopenmp-simd'),
        ('-mcpu=native', '-fopenmp'),
        ('-fopenmp',),
        ('-fopenmp-simd',),
        (),
    ),
)
# mmscconv::SCConv for ONNX Runtime, on whose threads it runs.
ONNXRUNTIME_OP = Library(
    'onnxruntime_op',
    ('scconv.c', 'squeeze.c', 'transform.c', 'onnxruntime/*.c'),
    (('-march=native', WIDE, '-fopenmp'), ('-march=native', '-fopenmp'), ('-fopenmp',)),
    links_openmp=False,
)


@functools.cache
def unavailable() -> str | None:
    """Return why the kernels cannot run on this machine, or None; compile them at the first call."""
    built = build(KERNELS)
    if isinstance(built, str):
        return built
    try:
        _library()
    except OSError as error:  # a file cut short, or a folder from which nothing may be run
        return f'{error}: remove the file, or set MMSCCONV_CACHE_DIR to another folder'
    return None


@functools.cache
def build(library: Library) -> Path | str:
    """Return the compiled library, or the reason why there is none."""
    compiler = next(filter(None, map(shutil.which, filter(None, (os.environ.get('CC'), 'gcc', 'cc', 'clang')))), None)
    if compiler is None:
        return 'no C compiler was found: install gcc or clang, or name one in CC'
    # Machines and containers may share a home folder.
    digest = hashlib.sha256('\n'.join((compiler, _cpu(), *platform.libc_ver(), *FLAGS, str(library))).encode())
    for path in (*library.files, *sorted(SOURCES.glob('**/*.h'))):
        digest.update(path.read_bytes())
    name = f'{library.name}-{digest.hexdigest()[:16]}.so'
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / name).exists():
            return folder / name
        scratch = Path(tempfile.mkdtemp(dir=folder))
    except (OSError, RuntimeError) as error:  # Python raises RuntimeError for a user without a home folder
        return f'{error}: set MMSCCONV_CACHE_DIR to a writable folder'
    try:
        for optional in library.flags:
            message = _compile(compiler, optional, library, scratch / name)
            if message is None:
                # Atomic: several processes may compile at the same time.
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
    # With -z,defs a missing function fails here, not when the library is loaded.
    link = (*FLAGS, *optional) if library.links_openmp else ('-Wl,-z,defs',)
    return next(filter(None, messages), None) or run('-shared', *link, *objects, '-o', file, '-lm')


def cache_folder() -> Path:
    """Return the folder of the compiled kernels: MMSCCONV_CACHE_DIR, or mmscconv in the user's cache folder."""
    chosen = os.environ.get('MMSCCONV_CACHE_DIR')
    if chosen:
        return Path(chosen).absolute()  # the loader takes a name without a folder for a system library's
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmscconv'


def _cpu() -> str:
    """Return the CPU's description: machines that share a home folder may have other instructions."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return f'{platform.machine()} {platform.processor()}'
    return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))


@functools.cache
def _prototypes() -> dict[str, tuple[Parameter, ...]]:
    return prototypes((SOURCES / 'kernels.h').read_text())


@functools.cache
def _library() -> ctypes.CDLL:
    built = build(KERNELS)
    if isinstance(built, str):
        raise RuntimeError(built)
    library = ctypes.CDLL(str(built))
    for name, parameters in _prototypes().items():
        getattr(library, name).argtypes = [parameter.ctype for parameter in parameters]
    return library


def call(name: str, *arguments: Argument) -> None:
    """Call a function of ``csrc/kernels.h``; for each tensor, the address of its values is passed.

    The caller is responsible for shapes, and for the strides of tensors with more than one axis.

    Raises:
        TypeError: Another number of arguments than the function has, or a tensor that does not have the dtype of its
            parameter, lies on another device than the CPU, or is a subclass or a wrapper without memory of its own.
        MemoryError: No memory for the function's workspace.
    """
    parameters = _prototypes()[name]
    if len(arguments) != len(parameters):
        raise TypeError(f'{name} takes {len(parameters)} arguments, got {len(arguments)}')
    # Biases and the like may be columns of a matrix, or expanded.
    arguments = tuple(a.contiguous() if isinstance(a, Tensor) and a.dim() == 1 else a for a in arguments)
    pairs = list(zip(parameters, arguments, strict=True))
    map_dtype = MAP_DTYPES[next((bool(argument) for parameter, argument in pairs if parameter.name == 'bf16'), False)]
    values = [
        parameter.address(argument, name, map_dtype if parameter.is_map else parameter.dtype)
        if parameter.ctype is ctypes.c_void_p
        else argument
        for parameter, argument in pairs
    ]
    if getattr(_library(), name)(*values):
        raise MemoryError(f'{name}: no memory for its workspace')


@functools.cache
def multiplies_in_tiles() -> bool:
    """Return whether the kernels' products of bf16 values run in the tiles of AMX.

    They do where the processor and the compiler have AMX and the operating system grants it, unless MMSCCONV_AMX is 0.
    X^w is then rounded to bf16 before the squeezes, as plain operations round it.

    Raises:
        ValueError: MMSCCONV_AMX is neither 0 nor 1.
    """
    wanted = os.environ.get('MMSCCONV_AMX') or '1'
    if wanted not in ('0', '1'):
        raise ValueError(f'MMSCCONV_AMX is 0 or 1, not {wanted!r}')
    granted = (ctypes.c_int64 * 1)()
    call('tiles', granted)
    return bool(granted[0]) and wanted == '1'
