"""--cfg-options as users write them, with blanks and mistakes."""

import argparse

import pytest

from mmscconv.engine.cli import ConfigOptions


def parsed(*pairs):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


@pytest.mark.parametrize(
    ('text', 'want'),
    [
        ('3', 3),
        ('1e-3', 1e-3),
        ('None', None),
        ('True', True),
        ('[1,2]', [1, 2]),
        ('[1, 2]', [1, 2]),
        ('1, 2', [1, 2]),
        ('(1, 2)', (1, 2)),
        ('a,b', ['a', 'b']),
        ('my runs/a.pth', 'my runs/a.pth'),
        ('my runs, old/a.pth', 'my runs, old/a.pth'),
        ('traffic light', 'traffic light'),
        ("['traffic light', 'car']", ['traffic light', 'car']),
        ("('traffic light',)", ('traffic light',)),
        ('"a b"', 'a b'),
        ('a=b c', 'a=b c'),
    ],
)
def test_values(text, want):
    assert parsed(f'key={text}') == {'key': want}


def test_later_options_win():
    assert parsed('a=1', 'b.c=x', 'a=2') == {'a': 2, 'b.c': 'x'}


@pytest.mark.parametrize(
    ('pair', 'message'),
    [
        ('foo', "takes KEY=VALUE, a.b.c=1 without blanks around the =, got 'foo'"),
        ('a =3', 'takes KEY=VALUE'),
        ('=3', 'takes KEY=VALUE'),
        ('.a=3', 'takes KEY=VALUE'),
        ('a..b=3', 'takes KEY=VALUE'),
        ('x=[1,2', "x: cannot read '[1,2'"),
        ('x=[traffic light,car]', 'a blank inside of a name'),
        ("x=['traffic light', car]", 'cannot read'),
    ],
)
def test_mistakes_are_one_line(pair, message, capsys):
    with pytest.raises(SystemExit):
        parsed(pair)
    assert message in capsys.readouterr().err


CODE = '__import__("os").mkdir("ran")'


@pytest.mark.parametrize(
    ('text', 'want'),
    [(CODE, CODE), (f'[{CODE},1]', [CODE, 1]), (f"[{CODE}, 'a b']", None)],
    ids=['alone', 'list', 'blanks'],
)
def test_values_are_not_run(text, want, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if want is None:
        with pytest.raises(SystemExit):
            parsed(f'a={text}')
        assert 'a: cannot read' in capsys.readouterr().err
    else:
        assert parsed(f'a={text}') == {'a': want}
    assert not list(tmp_path.iterdir())
