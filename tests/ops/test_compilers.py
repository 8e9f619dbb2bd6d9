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
    loops = dataclasses.replace(compiled.ONNXRUNTIME_OP, sources=('onnxruntime/threads.c',))
    built = compiled.build.__wrapped__(loops)
    assert isinstance(built, str) and 'set CC to a GCC' in built and 'undefined reference' not in built


@pytest.fixture
def uncached():
    for function in (compiled.unavailable, compiled._library, compiled.build):
        function.cache_clear()
    yield
    for function in (compiled.unavailable, compiled._library, compiled.build):
        function.cache_clear()


@pytest.mark.usefixtures('uncached')
def test_a_library_that_cannot_be_loaded_is_a_reason(tmp_path, monkeypatch):
    file = compiled.build(compiled.KERNELS)
    monkeypatch.setenv('MMSCCONV_CACHE_DIR', str(tmp_path))
    (tmp_path / file.name).write_bytes(b'cut short')
    compiled.build.cache_clear()
    assert f'{tmp_path / file.name}: ' in compiled.unavailable() and 'remove the file' in compiled.unavailable()


@pytest.mark.usefixtures('uncached')
def test_a_relative_cache_folder(tmp_path, monkeypatch):
    shutil.copy(compiled.build(compiled.KERNELS), tmp_path)
    compiled.build.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMSCCONV_CACHE_DIR', '.')
    assert compiled.unavailable() is None and compiled.build(compiled.KERNELS).parent == tmp_path


@pytest.mark.usefixtures('uncached')
def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    for name in ('MMSCCONV_CACHE_DIR', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled.Path, 'home', no_home)
    assert 'set MMSCCONV_CACHE_DIR to a writable folder' in compiled.unavailable()


def test_amx_is_turned_off_by_0_alone(monkeypatch):
    compiled.multiplies_in_tiles.cache_clear()
    monkeypatch.setenv('MMSCCONV_AMX', 'off')
    with pytest.raises(ValueError, match="MMSCCONV_AMX is 0 or 1, not 'off'"):
        compiled.multiplies_in_tiles()
