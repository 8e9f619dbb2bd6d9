"""The check of the kernels for other compilers: it passes what is right, and says what is not."""

import ctypes
import re
import shutil

import pytest

from mmscconv.ops import compiled
from mmscconv.ops.prototypes import Parameter
from tests.cross import cases
from tests.cross.check_kernels import check_target, main
from tests.cross.program import ProgramError, Target, entries, entry_points
from tests.cross.recording import recorded

pytestmark = pytest.mark.skipif(compiled.unavailable() is not None, reason=str(compiled.unavailable()))
# Without optimization it compiles in a second.
QUICK = Target('quick', 'gcc', '-O0 -fopenmp') if shutil.which('gcc') else Target('quick', 'clang', '-O0 -fopenmp-simd')
BREAKS = {
    'value': ('common.h', 'return reciprocal_of(1.f + ', 'return reciprocal_of(1.0001f + '),
    'threads': ('fuse.c', '    free(sums);\n    return 0;', '    free(sums);\n    *beta1 += threads;\n    return 0;'),
    'input': ('batch_norm.c', '    free(total);', '    ((float *)weight)[0] += 1e-3f;\n    free(total);'),
    'integer': ('fingerprint.c', '    *sum = (int64_t)total;', '    *sum = (int64_t)total + 1;'),
    'behind': (
        'norm_fuse.c',
        '    failed = failed || map_forward(',
        '    sample_means[2 * samples * channels] = 0;\n    failed = failed || map_forward(',
    ),
    'before': ('packing.c', '    return 0;\n}\n\n/* gwc', '    out[-1] = 0;\n    return 0;\n}\n\n/* gwc'),
    'unused': ('kernels.h', '/* fuse.c */', 'int another(const float *x, int64_t n);\n/* fuse.c */'),
}


@pytest.fixture(scope='module')
def calls():
    with recorded() as found:
        cases.run_all()
    return found


@pytest.fixture
def checked(calls, tmp_path, capsys):
    """Check the kernels with some of BREAKS in them: (whether all is right, what was printed)."""

    def check(*breaks):
        sources = shutil.copytree(compiled.SOURCES, tmp_path / 'csrc')
        for file, text, other in map(BREAKS.get, breaks):
            content = (sources / file).read_text()
            assert text in content
            (sources / file).write_text(content.replace(text, other, 1))
        if 'unused' in breaks:
            (sources / 'another.c').write_text(
                '#include "kernels.h"\nint another(const float *x, int64_t n) { return !x + !n; }'
            )
        return check_target(QUICK, calls, sources)[2], capsys.readouterr().out

    return check


def test_kernels_are_as_recorded(checked):
    right, printed = checked()
    assert right, printed
    rows = [line.strip('| ').split(' | ') for line in printed.splitlines()[2:] if line]
    assert [row[0] for row in rows] == list(entry_points(compiled.SOURCES))
    # Some calls of scconv have bf16 maps: one of their last bits.
    assert all(float(row[2]) <= (2**-7 if row[0] == 'scconv' else 2e-6) for row in rows)
    assert all(int(row[1]) and row[3] == 'as recorded' for row in rows)


def test_faults_are_told(checked):
    right, printed = checked('value', 'threads', 'input', 'integer', 'unused')
    assert not right
    failed = {line.split()[1] for line in printed.splitlines() if line.endswith('| failed |')}
    of_the_gate = {'sru_forward', 'sru_backward', 'sru_squeeze', 'sru_squeeze_backward', 'scconv'}
    assert failed == {*of_the_gate, 'fuse_forward', 'batch_norm_forward', 'fingerprint', 'another'}


@pytest.mark.parametrize(('place', 'said'), [
    ('behind', r'norm_fuse_forward: signal \d+, memory beyond a tensor was touched'),
    ('before', r'pack: memory before a tensor was changed'),
])  # fmt: skip
def test_a_kernel_that_leaves_its_tensors(place, said, checked):
    right, printed = checked(place)
    assert not right
    assert re.search(said, printed), printed


def test_a_type_that_cannot_be_replayed_is_named():
    with pytest.raises(ProgramError, match=r'f: x is of a type that cannot be replayed'):
        entries({'f': (Parameter('x', ctypes.c_char),)})


def test_a_compiler_that_is_not_there(capsys):
    assert main(['--compiler', 'no-such-gcc']) == 1
    assert 'not run: no-such-gcc is not installed' in capsys.readouterr().out
