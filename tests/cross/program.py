"""The C program that replays recorded calls: its table of functions, its recording, compiling and running it."""

from __future__ import annotations

import ctypes
import shlex
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmscconv.ops import compiled
from mmscconv.ops.prototypes import Parameter, prototypes
from tests.cross.recording import Call, Pointer

REPLAY = Path(__file__).with_name('replay.c')
THREADS = (1, 3)
# As in replay.c.
INTEGER, REAL, POINTER, NULL_POINTER = range(4)
# C converts a number and a void pointer to the parameter's own type.
FIELDS = {ctypes.c_int: 'integer', ctypes.c_int64: 'integer', ctypes.c_float: 'real', ctypes.c_double: 'real'}


class ProgramError(Exception):
    """The program cannot be made or fails: a message for the user."""


@dataclass(frozen=True)
class Target:
    """A compiler, its flags, and how its programs run.

    Attributes:
        name: Of the row in the report.
        compiler: The command, with what it always needs.
        flags: For compiling and linking.
        run: The command in front of the program.
        machine: The machine that runs it without an emulator, or None.
    """

    name: str
    compiler: str
    flags: str
    run: str = ''
    machine: str | None = None


def entry_points(sources: Path) -> dict[str, tuple[Parameter, ...]]:
    """Return the functions that ``sources``/kernels.h declares, but ``tiles``, whose answer is the machine's."""
    return {name: p for name, p in prototypes((sources / 'kernels.h').read_text()).items() if name != 'tiles'}


def entries(functions: dict[str, tuple[Parameter, ...]]) -> str:
    """Return entries.h: a function of recorded arguments around each function, and the table of all.

    Raises:
        ProgramError: A parameter of a type that is not known here.
    """
    lines = []
    for name, parameters in functions.items():
        values = []
        for i, parameter in enumerate(parameters):
            field = 'pointer' if parameter.ctype is ctypes.c_void_p else FIELDS.get(parameter.ctype)
            if field is None:
                raise ProgramError(f'{name}: {parameter.name} is of a type that cannot be replayed: {parameter.ctype}')
            values.append('threads' if parameter.name == 'threads' else f'a[{i}].{field}')
        unused = '' if 'threads' in values else '(void)threads, '
        lines.append(f'static int run_{name}(const Argument *a, int threads) {{')
        lines.append(f'    return {unused}{name}({", ".join(values)});\n}}')
    table = ',\n'.join(f'    {{"{name}", run_{name}}}' for name in functions)
    return '\n'.join(lines) + f'\nstatic const Entry ENTRIES[] = {{\n{table}\n}};\n'


def recording(calls: Sequence[Call], functions: dict[str, tuple[Parameter, ...]]) -> bytes:
    """Return ``calls`` as replay.c reads them: integers of 64 bits, and the regions' bytes."""
    numbers = {name: i for i, name in enumerate(functions)}
    parts = [_integers(len(calls))]
    for call in calls:
        parts.append(_integers(numbers[call.name], len(call.regions)))
        for region in call.regions:
            parts += [_integers(len(region.before)), region.before.numpy().tobytes()]
        parts.append(_integers(len(call.arguments)))
        parts += [_argument(a, p) for a, p in zip(call.arguments, functions[call.name], strict=True)]
    return b''.join(parts)


def _integers(*values: int) -> bytes:
    return struct.pack(f'<{len(values)}q', *values)


def _argument(argument: float | Pointer | None, parameter: Parameter) -> bytes:
    if argument is None:
        return _integers(NULL_POINTER, 0)
    if isinstance(argument, Pointer):
        return _integers(POINTER, argument.region, argument.offset)
    if FIELDS[parameter.ctype] == 'real':
        return _integers(REAL) + struct.pack('<d', argument)
    return _integers(INTEGER, int(argument))


class Program:
    """Recorded calls, and the kernels of ``sources`` to replay them, in ``folder``."""

    def __init__(self, calls: Sequence[Call], folder: Path, sources: Path = compiled.SOURCES) -> None:
        self.calls, self.folder, self.sources = calls, folder, sources
        functions = entry_points(sources)
        (folder / 'entries.h').write_text(entries(functions))
        (folder / 'recording').write_bytes(recording(calls, functions))

    def results(self, target: Target) -> list[list[list[Tensor]]]:
        """Return the bytes of each region of each call, for each number of threads of THREADS.

        Raises:
            ProgramError: The compiler or the program fails.
        """
        program, results = self.folder / 'replay', self.folder / 'results'
        files = [*sorted(self.sources.glob('*.c')), REPLAY]
        includes = [f'-I{self.sources}', f'-I{self.folder}']
        command = [*shlex.split(target.compiler), *compiled.FLAGS, *shlex.split(target.flags)]
        _run([*command, *includes, *map(str, files), '-o', str(program), '-lm'])
        _run([*shlex.split(target.run), *map(str, (program, self.folder / 'recording', results, *THREADS))])
        return self._parts(results.read_bytes())

    def _parts(self, data: bytes) -> list[list[list[Tensor]]]:
        sizes = [len(region.before) for _ in THREADS for call in self.calls for region in call.regions]
        if len(data) != sum(sizes):
            raise ProgramError(f'the program wrote {len(data)} bytes of results in place of {sum(sizes)}')
        pieces = iter(torch.frombuffer(bytearray(data), dtype=torch.uint8).split(sizes))
        return [[[next(pieces) for _ in call.regions] for call in self.calls] for _ in THREADS]

    def onnxruntime_op(self, target: Target) -> str:
        """Compile and link the op for ONNX Runtime, without running it; return how that went."""
        if 'clang' in _run([*shlex.split(target.compiler), '--version']):
            return 'not built: it takes GCC'
        op = compiled.ONNXRUNTIME_OP
        files = sorted(file for pattern in op.sources for file in self.sources.glob(pattern))
        flags = [f for f in shlex.split(target.flags) if f != '-static']
        if '-fopenmp' not in flags:
            return 'not built: it takes -fopenmp'
        objects = []
        for file in files:
            objects.append(str(self.folder / f'op_{file.stem}.o'))
            _run([*shlex.split(target.compiler), *compiled.FLAGS, *flags, '-c', str(file), '-o', objects[-1]])
        library = str(self.folder / 'onnxruntime_op.so')
        machine = [f for f in flags if f != '-fopenmp']
        _run([*shlex.split(target.compiler), *machine, '-shared', '-Wl,-z,defs', *objects, '-o', library, '-lm'])
        return 'links'


def version(target: Target) -> str:
    """Return the compiler's version."""
    return _run([*shlex.split(target.compiler), '-dumpversion']).strip()


def _run(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises:
        ProgramError: It fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ProgramError(str(error)) from error
    if done.returncode:
        message = done.stderr.strip() or f'no message, status {done.returncode}'
        raise ProgramError(f'{Path(command[0]).name}: {message}')
    return done.stdout
