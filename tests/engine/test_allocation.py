"""Freed memory is used again, without new pages of the kernel."""

import os
import platform
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from mmscconv.engine.allocation import keep_freed_memory

ROUNDS = """
import resource, sys
from mmscconv.engine.allocation import keep_freed_memory

if sys.argv[1] == 'keep':
    assert keep_freed_memory()
for step in range(12):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    maps = [bytearray(8 << 20) for _ in range(8)]
    del maps
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the C library is not glibc, whose malloc is set')
def test_the_kernel_gives_no_new_pages():
    # Settings of the user's would be those of both ways.
    env = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES' and not k.startswith('MALLOC_')}
    faults = {}
    for way in ('default', 'keep'):
        command = [sys.executable, '-c', ROUNDS, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
        faults[way] = int(done.stdout)
    # Pages of 2 MiB, which some systems hand out, make both few.
    assert 8 * faults['keep'] < faults['default']


def test_settings_of_the_user_stay(monkeypatch):
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '1000000')
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert not keep_freed_memory()
