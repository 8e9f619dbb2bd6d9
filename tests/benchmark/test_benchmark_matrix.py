"""The matrix of the benchmark: its rows, its arithmetic, and what it does when a row fails; no time is judged."""

import csv

import pytest

from mmscconv.benchmark import matrix
from mmscconv.benchmark.jobs import Setting
from mmscconv.benchmark.session import Competitor
from mmscconv.benchmark.subjects import LayerSubject
from mmscconv.errors import UserError

TINY = Setting('eager+deploy', 'fp32', 'nchw', 'forward', 2, (9, 9))


def competitor(name, *times):
    return Competitor(name, 'nchw', lambda: None, times=list(times))


def test_ratios_are_those_of_the_right_pairs():
    found = [
        competitor('conv', 0.4, 0.6, 0.8),
        competitor('conv+deploy', 0.3, 0.3, 0.3),
        competitor('scconv+deploy', 0.2, 0.2, 0.4),
        competitor('nothing+deploy', 0.1, 0.1, 0.1),
    ]
    row = matrix.result_of('R50, fp32, eager+deploy', found)
    assert (row.conv, row.folded, row.scconv) == (0.6, 0.3, 0.2)
    assert (row.faster.median, row.faster_than_folded.median, row.bound.median) == pytest.approx((2, 1.5, 6))
    assert row.cells[:4] == ('R50, fp32, eager+deploy', '600', '300', '200')


def test_training_has_no_folded_column():
    row = matrix.result_of('R50, fp32, training', [competitor('conv', 2.0), competitor('scconv', 4.0)])
    assert (row.folded, row.faster_than_folded, row.bound) == (None, None, None)
    assert row.faster.median == 0.5


def test_best_against_best_takes_each_network_s_fastest_runtime():
    results = [
        matrix.result_of('R50, fp32, eager+deploy', [competitor('conv', 0.5), competitor('scconv+deploy', 0.2)]),
        matrix.result_of(
            'R50, fp32, compile+deploy',
            [competitor('conv', 0.4), competitor('conv+deploy', 0.3), competitor('scconv+deploy', 0.25)],
        ),
        matrix.result_of('R50, fp32, training', [competitor('conv', 0.01), competitor('scconv', 0.01)]),
        matrix.result_of('RetinaNet-R50, fp32, eager+deploy', [competitor('conv', 0.01), competitor('scconv', 0.01)]),
    ]
    assert matrix.best_against_best(results, 'fp32') == (
        'R50, fp32, best against best', '300', '', '200', '1.50', '', '',
    )  # fmt: skip
    assert matrix.best_against_best(results, 'bf16') is None


def test_rows_have_names_of_their_own_and_configs_that_are_there():
    every = matrix.rows()
    assert len({row.name for row in every}) == len(every) >= 19
    for row in every:
        if not row.bound:
            row.subject()  # reads both configs


def test_rows_are_chosen_by_globs():
    assert all('bf16' in row.name for row in matrix.chosen(['*bf16*']))
    with pytest.raises(UserError, match="none is like 'nothing'"):
        matrix.chosen(['*bf16*', 'nothing'])


def test_a_row_that_fails_is_named_and_the_others_are_there(tool, tmp_path, monkeypatch):
    def broken():
        raise UserError('no such network')

    rows = [
        matrix.Row('broken', broken, TINY),
        matrix.Row('a layer', lambda: LayerSubject(16, 1, True, {}), TINY),
    ]
    monkeypatch.setattr(matrix, 'rows', lambda: rows)
    status, out, err = tool('benchmark', 'matrix', '--rounds', 2, '--warmup', 1, '--out', tmp_path / 'new')
    assert status == 0, err
    assert 'broken: no such network' in out
    text = (tmp_path / 'new' / 'matrix.md').read_text()
    assert 'Not measured: broken: no such network' in text and '- instructions: ' in text
    lines = [line for line in (tmp_path / 'new' / 'matrix.csv').read_text().splitlines() if line[0] != '#']
    (row,) = csv.DictReader(lines)
    assert row['row'] == 'a layer' and float(row['SCConv, ms']) > 0 and row['nothing']
