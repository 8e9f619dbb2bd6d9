"""Check that the C kernels work with another compiler or on another processor.

The package's calls of the kernels are recorded on this machine, with the kernels that it compiles for itself. A C
program with the same kernels replays the calls, compiled for each target and run by an emulator where the processor
is another. Its results must be as recorded, and have the same bits with 1 and 3 threads. What was recorded is right:
tests/ops compares it with float64.

    python -m tests.cross.check_kernels                     # all targets whose compiler is installed
    python -m tests.cross.check_kernels armv8-a clang       # these
    python -m tests.cross.check_kernels --compiler riscv64-linux-gnu-gcc --flags '-static -fopenmp' --run qemu-riscv64
"""

from __future__ import annotations

import argparse
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmscconv.ops import compiled
from mmscconv.table import Table
from tests.cross import cases
from tests.cross.comparison import compared
from tests.cross.program import Program, ProgramError, Target, entry_points, version
from tests.cross.recording import Call, recorded

AARCH64, ARMHF = 'aarch64-linux-gnu-gcc', 'arm-linux-gnueabihf-gcc'
CLANG_AARCH64 = 'clang --target=aarch64-linux-gnu'
TARGETS = (
    Target('gcc', 'gcc', '-march=native -fopenmp'),
    Target('gcc-without-openmp', 'gcc', '-march=native -fopenmp-simd'),
    Target('gcc-avx2', 'gcc', '-march=haswell -fopenmp', machine='x86_64'),
    Target('gcc-x86-64', 'gcc', '-march=x86-64 -fopenmp', machine='x86_64'),
    Target('clang', 'clang', '-march=native -fopenmp'),
    Target('clang-without-openmp', 'clang', '-march=native -fopenmp-simd'),
    Target('clang-avx2', 'clang', '-march=haswell -fopenmp', machine='x86_64'),
    Target('clang-x86-64', 'clang', '-march=x86-64 -fopenmp', machine='x86_64'),
    Target('armv8-a', AARCH64, '-march=armv8-a -fopenmp -static', 'qemu-aarch64'),
    Target('armv8.2-a', AARCH64, '-march=armv8.2-a -fopenmp -static', 'qemu-aarch64'),
    Target('sve-128', AARCH64, '-march=armv8.2-a+sve -fopenmp -static', 'qemu-aarch64 -cpu max,sve128=on'),
    Target('sve-512', AARCH64, '-march=armv8.2-a+sve -fopenmp -static', 'qemu-aarch64 -cpu max,sve512=on'),
    Target('clang-armv8-a', CLANG_AARCH64, '-march=armv8-a -fopenmp-simd -static', 'qemu-aarch64'),
    Target('clang-sve-256', CLANG_AARCH64, '-march=armv8.2-a+sve -fopenmp-simd -static',
           'qemu-aarch64 -cpu max,sve256=on'),
    Target('armv7-a', ARMHF, '-march=armv7-a+neon-vfpv4 -fopenmp -static', 'qemu-arm'),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m tests.cross.check_kernels', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('targets', nargs='*', metavar='TARGET', help=', '.join(t.name for t in TARGETS))
    parser.add_argument('--compiler', help='a target of your own: its C compiler')
    parser.add_argument('--flags', default='-fopenmp', help='its flags besides those of the package')
    parser.add_argument('--run', default='', help='the command in front of its program: an emulator')
    parser.add_argument('--sources', type=Path, default=compiled.SOURCES, help='the kernels that are checked')
    args = parser.parse_args(arguments)
    by_name = {target.name: target for target in TARGETS}
    unknown = sorted(set(args.targets) - set(by_name))
    if unknown:
        parser.error(f'no such target: {", ".join(unknown)}; there are {", ".join(by_name)}')
    chosen = [by_name[name] for name in args.targets]
    if args.compiler:
        chosen.append(Target('own', args.compiler, args.flags, args.run))
    return check(chosen or TARGETS, args.sources, all_must_run=bool(chosen))


def check(targets: Sequence[Target], sources: Path = compiled.SOURCES, all_must_run: bool = False) -> int:
    """Check ``targets``, print what came out, and return the exit status: 0 if all that ran are right."""
    if reason := compiled.unavailable():
        print(f'the kernels of this machine, which record: {reason}', file=sys.stderr)
        return 2
    with recorded() as calls:
        cases.run_all()
    print(f'{len(calls)} calls recorded by {compiled.build(compiled.KERNELS)}\n')
    summary, failed = Table(['target', 'compiler', 'flags', 'run by', 'kernels', 'op for ONNX Runtime']), False
    for target in targets:
        missing = lacking(target)
        if missing:
            kernels, op, right = f'not run: {missing}', '', not all_must_run
        else:
            kernels, op, right = check_target(target, calls, sources)
        failed |= not right
        compiler = target.compiler if missing else f'{target.compiler} {version(target)}'
        summary.rows.append([target.name, compiler, target.flags, target.run or 'this machine', kernels, op])
    print(summary.markdown())
    return int(failed)


def lacking(target: Target) -> str | None:
    """Return what this machine lacks for ``target``, or None."""
    for command in (target.compiler, target.run):
        if command and shutil.which(shlex.split(command)[0]) is None:
            return f'{shlex.split(command)[0]} is not installed'
    return f'needs {target.machine}' if target.machine not in (None, platform.machine()) else None


def check_target(target: Target, calls: Sequence[Call], sources: Path) -> tuple[str, str, bool]:
    """Print the table of entry points; return the results of kernels and op in words, and whether all is right."""
    functions = entry_points(sources)
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = Program(calls, Path(folder), sources)
            results = program.results(target)
            op = program.onnxruntime_op(target)
        except ProgramError as error:
            print(f'{target.name}: {error}\n')
            return 'failed', '', False
    parameters = {name: [p.name for p in of_function] for name, of_function in functions.items()}
    rows = compared(list(functions), parameters, calls, results)
    table = Table([target.name, 'calls', 'greatest error', 'result'])
    for name, row in rows.items():
        table.rows.append([name, str(row.calls), f'{row.error:.1e}', 'failed' if row.failures else 'as recorded'])
    print(table.markdown())
    failures = [line for row in rows.values() for line in row.failures]
    for line in failures[:20]:
        print(line)
    if failures:
        print(f'{len(failures)} failures in all\n')
        return f'{len(failures)} failures', op, False
    worst = max(row.error for row in rows.values())
    return f'as recorded, {len(rows)} entry points, {len(calls)} calls, greatest error {worst:.1e}', op, True


if __name__ == '__main__':
    sys.exit(main())
