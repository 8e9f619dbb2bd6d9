"""Configs that cannot be read are one line, whatever Python raises in them."""

import pytest

from mmscconv.configuration import read_config
from mmscconv.errors import UserError


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.py', "_base_ = './nothing.py'", 'nothing.py'),
        ('a.py', 'model = dict(depth=dpeth)', "'dpeth' is not defined"),
        ('a.py', 'lr = 1 / 0', 'division by zero'),
        ('a.py', 'model = dict(', 'closed'),
        ('a.yml', 'a: [1', "expected ',' or ']'"),
        ('a.pth', 'no config', 'py/yml'),
    ],
)
def test_a_broken_config_is_one_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_config(tmp_path / name)
    line = str(error.value)
    assert line.startswith(f'config {tmp_path / name}: ') and message in line and '\n' not in line
