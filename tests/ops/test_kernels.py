"""Runs the tests of tests/ops/ for every backend, in processes of their own.

Triton decides when it is imported whether it interprets, and torch's compiler
imports it: the variable must be set before anything else runs. Without a CUDA
device the kernels are interpreted on the CPU, with one they run there.
"""

import os
import subprocess
import sys

import pytest
import torch

from helpers.paths import ROOT
from mmscconv.ops.backend import triton_unavailable

needs_triton = pytest.mark.skipif(triton_unavailable() is not None, reason=str(triton_unavailable()))


def run_apart(*names, **environment):
    files = [f'tests/ops/{name}.py' for name in names]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--durations=5', *files]
    # Not measured for coverage, which makes Triton's interpreter three times slower.
    env = {k: v for k, v in os.environ.items() if not k.startswith(('TRITON_', 'MMSCCONV_', 'COV'))}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**env, **environment}, timeout=400
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0


def test_native_kernels():
    run_apart('kernels_sru', 'kernels_fuse', TESTED_BACKEND='native')


@needs_triton
def test_triton_kernels():
    run_apart(
        'triton_tiles',
        'kernels_sru',
        'kernels_fuse',
        **({} if torch.cuda.is_available() else {'TRITON_INTERPRET': '1'}),
    )


@needs_triton
def test_triton_kernels_compile_for_an_h100(tmp_path):
    run_apart('triton_compiled', TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
def test_interpreted_backend_is_refused_without_the_variable(monkeypatch):
    from mmscconv.ops import choose_backend

    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(RuntimeError, match='TRITON_INTERPRET=1'):
        choose_backend(torch.zeros(1, 2, 1, 1), 'triton')
