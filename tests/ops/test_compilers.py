"""Compilers that lack something: the next flags are tried, and what cannot be built is told with the way out."""

import dataclasses
import shutil

import pytest

from mmscconv.ops import compiled

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Make a compiler of this machine's that refuses some flags: a function of them and of flags that it adds."""

    def make(*refused, adds=''):
        script, real = tmp_path / 'cc', shutil.which('gcc') or shutil.which('cc') or shutil.which('clang')
        tests = [f'[ "$a" = {flag} ] && {{ echo "no {flag} here" >&2; exit 1; }}' for flag in refused]
        loop = f'for a; do {"; ".join(tests)}; done' if tests else ''
        script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{loop}\nexec {real} {adds} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv('CC', str(script))
        monkeypatch.setenv('MMSCCONV_CACHE_DIR', str(tmp_path / 'cache'))

    return make


@pytest.mark.parametrize(
    ('refused', 'used', 'not_used'),
    [
        ((compiled.WIDE,), '-march=native -fopenmp ', '-fopenmp-simd'),
        ((compiled.WIDE, '-fopenmp'), '-march=native -fopenmp-simd ', '-mcpu'),
        (('-march=native', '-mcpu=native'), '-fno-trapping-math -fopenmp ', 'native'),
        (('-march=native', '-mcpu=native', '-fopenmp'), '-fno-trapping-math -fopenmp-simd ', 'native'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, tuple) else '',
)
def test_the_best_flags_that_a_compiler_has(refused, used, not_used, compiler, tmp_path):
    compiler(*refused)
    small = dataclasses.replace(compiled.KERNELS, sources=('fingerprint.c',))
    built = compiled.build.__wrapped__(small)
    assert not isinstance(built, str), built
    last = (tmp_path / 'calls').read_text().splitlines()[-1]
    assert used in last and not_used not in last


def test_the_op_for_onnxruntime_names_the_compiler_it_takes(compiler):
    compiler(adds='-D__clang__')
    built = compiled.build.__wrapped__(compiled.ONNXRUNTIME_OP)
    assert isinstance(built, str) and 'set CC to a GCC' in built and 'undefined reference' not in built
