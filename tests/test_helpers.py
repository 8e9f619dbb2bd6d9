"""The ground of the tests themselves: the server of their forks, the examples that they draw, the environment."""

import os
import sys
import types
from unittest.mock import patch

import pytest
from hypothesis import strategies as st

from conftest import SETTINGS
from helpers import forks
from helpers.drawn import outcomes
from helpers.paths import ROOT
from like_a_convolution.columns import apart


def require_imported():
    """Where the server had another list, the fork would import these itself, seconds later."""
    missing = [name for name in forks.PRELOADED if name not in sys.modules]
    if missing:
        pytest.fail(f'not imported by the server: {missing}')


def test_one_server_has_imported_for_all():
    apart(require_imported)


def test_one_place_sets_the_list_of_the_server():
    setting = {path.name for path in (ROOT / 'tests').rglob('*.py') if 'set_forkserver_preload(' in path.read_text()}
    assert setting == {'forks.py', 'test_helpers.py'}


def drawn():
    examples = []
    outcomes(st.lists(st.sampled_from(range(10_000)), min_size=3), lambda e: examples.append(e), 40)
    return examples


def test_examples_do_not_depend_on_what_is_imported(tmp_path):
    before = drawn()
    (tmp_path / 'constants.py').write_text('\n'.join(f'A{n} = {n}' for n in range(5000, 5300)))
    module = types.ModuleType('constants')
    module.__file__ = str(tmp_path / 'constants.py')
    with patch.dict(sys.modules, constants=module), patch('hypothesis.internal.constants_ast.is_local_module_file'):
        assert drawn() == before


def test_settings_of_the_user_stay_out():
    assert not set(SETTINGS) & os.environ.keys()
    assert os.environ['MMSCCONV_CACHE_DIR'] == str(ROOT / '.pytest_cache' / 'kernels')
