import json
import os
import subprocess
import sys

import pytest

from mmscconv.engine.results import METRICS, pick_metric, read_log

FIGURE4 = 'alpha,flops_G,params_M,top1\n3/4,0.9,15.9,\n1/2,0.83,14.7,79.7\n0.125,0.74,13.1,79.2\n'


def write_log(work_dir, time, records):
    log = work_dir / time / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(f'{json.dumps(record)}\n' for record in records))
    return work_dir


def training(*steps):
    return [{'loss': 1 / step, 'step': step} for step in steps]


def validation(*values):
    return [{'accuracy/top1': value, 'step': epoch} for epoch, value in values]


def drawn(monkeypatch):
    """Keep the figure that the tool draws, to look at what is in it."""
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *a, **k: (figures.append(figure), save(figure, *a, **k)))
    return figures


SWEEP = """config,seeds,metric,last,std,best,paper,params,multiply_adds,seconds
plain,3/3,coco/bbox_mAP,79.5,0.5,80,,3000000,246000000,0.4
thin,3/3,coco/bbox_mAP,78,0.4,79,,2000000,187000000,0.3
ours,1/3,coco/bbox_mAP,79,,79,,1900000,187000000,0.5
later,0/3,,,,,,1900000,187000000,
"""


def test_cost(tool, tmp_path, monkeypatch):
    figures, table = drawn(monkeypatch), tmp_path / 'table.csv'
    table.write_text(SWEEP)
    status, out, error = tool('plot', 'cost', table, '--curve', 'plain', 'thin', '--out', tmp_path / 'cost.png')
    assert (status, out) == (0, f'cost: {tmp_path / "cost.png"}\n'), error
    (axes,) = figures[0].axes
    assert lines_of(axes)['_child0'] == [(187, 78), (246, 79.5)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ['plain', 'thin', 'ours']
    assert axes.get_ylabel() == 'coco/bbox_mAP (%), mean and standard deviation over seeds'
    for curve, text, message in (
        ('later', SWEEP, 'has no result of later'),
        ('plain', SWEEP.replace('246000000', ''), 'has no multiply-adds of plain'),
    ):
        table.write_text(text)
        status, _, error = tool('plot', 'cost', table, '--curve', curve, '--out', tmp_path / 'x.png')
        assert status == 2 and message in error and error.count('\n') == 1


def test_cost_of_an_unknown_metric_has_no_unit(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    (tmp_path / 'table.csv').write_text(SWEEP.replace('coco/bbox_mAP', 'epe'))
    assert tool('plot', 'cost', tmp_path / 'table.csv', '--curve', 'plain', '--out', tmp_path / 'x.png')[0] == 0
    assert figures[0].axes[0].get_ylabel() == 'epe, mean and standard deviation over seeds'


def lines_of(axes):
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines if len(line.get_xdata())}


def test_read_log_joins_a_resumed_run(tmp_path):
    # Killed after iteration 30, resumed from the checkpoint of epoch 1, iteration 20.
    write_log(tmp_path, '1', [*training(10, 20), *validation((1, 50.0)), *training(30)])
    write_log(tmp_path, '2', [])
    write_log(tmp_path, '3', [*training(30, 40), *validation((2, 60.0))])
    records = read_log(tmp_path)
    assert [r['step'] for r in records[0]] == [10, 20, 30, 40]
    assert [(r['step'], r['accuracy/top1']) for r in records[1]] == [(1, 50.0), (2, 60.0)]


def test_read_log_takes_a_repeated_validation_once(tmp_path):
    # Killed after the validation of epoch 1, resumed from before it, killed in epoch 2, and once more.
    write_log(tmp_path, '1', [*training(10, 20), *validation((1, 50.0))])
    write_log(tmp_path, '2', [*validation((1, 51.0)), *training(30)])
    write_log(tmp_path, '3', [*validation((1, 52.0)), *training(30, 40), *validation((2, 60.0))])
    write_log(tmp_path, '4', validation((2, 61.0)))
    records = read_log(tmp_path)
    assert [r['step'] for r in records[0]] == [10, 20, 30, 40]
    assert [(r['step'], r['accuracy/top1']) for r in records[1]] == [(1, 52.0), (2, 61.0)]


def test_read_log_keeps_validations_before_the_repeated_one(tmp_path):
    """Validations may be more frequent than records of training."""
    write_log(tmp_path, '1', [*training(10), *validation((50, 50.0), (60, 60.0))])
    write_log(tmp_path, '2', [*validation((60, 61.0)), *training(70)])
    assert [(r['step'], r['accuracy/top1']) for r in read_log(tmp_path)[1]] == [(50, 50.0), (60, 61.0)]


def test_read_log_numbers_validations_that_were_logged_at_step_0(tmp_path):
    """Trainings that count iterations were once logged by epoch, of which they have one."""
    write_log(tmp_path, '1', [*training(50, 100), *validation((0, 50.0)), *training(150, 200), *validation((0, 60.0))])
    # Killed after that validation, resumed from before it, with a config of today.
    write_log(tmp_path, '2', [*validation((200, 61.0)), *training(250, 300), *validation((300, 70.0))])
    found = [(r['step'], r['accuracy/top1']) for r in read_log(tmp_path)[1]]
    assert found == [(100, 50.0), (200, 61.0), (300, 70.0)]


def test_read_log_takes_one_validation_at_step_0_as_repeated(tmp_path):
    write_log(tmp_path, '1', [*training(10), *validation((0, 50.0), (0, 60.0))])
    write_log(tmp_path, '2', [*validation((0, 61.0)), *training(70)])
    write_log(tmp_path, '3', [*validation((0, 62.0))])
    found = [(r['step'], r['accuracy/top1']) for r in read_log(tmp_path)[1]]
    assert found == [(10, 50.0), (10, 61.0), (70, 62.0)]


def test_read_log_leaves_out_a_line_that_a_kill_cut_short(tmp_path):
    log = write_log(tmp_path, '1', training(10, 20)) / '1' / 'vis_data' / 'scalars.json'
    log.write_text(log.read_text() + '{"loss": 0.')
    assert [r['step'] for r in read_log(tmp_path)[0]] == [10, 20]


def test_read_log_takes_the_newest_of_restarted_runs(tmp_path):
    write_log(tmp_path, '1', [*training(10, 20), *validation((1, 50.0)), *training(30, 40), *validation((2, 51.0))])
    write_log(tmp_path, '2', [*training(10, 20), *validation((1, 70.0))])
    records = read_log(tmp_path)
    assert [r['step'] for r in records[0]] == [10, 20]
    assert [r['accuracy/top1'] for r in records[1]] == [70.0]


def last_step(work_dir, **written):
    """Set the times of the logs, in seconds by the end of their folder's name, and return the last record's step."""
    for name, seconds in written.items():
        (log,) = work_dir.glob(f'*{name}/vis_data/scalars.json')
        os.utime(log, (seconds, seconds))
    return read_log(work_dir)[0][-1]['step']


@pytest.mark.parametrize('first', [10, 60], ids=['restarted', 'resumed'])
def test_read_log_orders_runs_across_time_zones(tmp_path, first):
    """Folders are named by the local time: of a zone two hours ahead, then of a container in UTC."""
    write_log(tmp_path, '20260701_140000', training(*range(10, 60, 10)))
    write_log(tmp_path, '20260701_124500', training(*range(first, 110, 10)))
    assert last_step(tmp_path, _140000=1000, _124500=3700) == 100
    assert [r['step'] for r in read_log(tmp_path)[0]] == [*range(10, 110, 10)]


@pytest.mark.parametrize('first', [10, 60], ids=['restarted', 'resumed'])
@pytest.mark.parametrize('gap', [0, 1])
def test_read_log_knows_a_copy_by_its_times(tmp_path, first, gap):
    """A copy within a second, in any order, of logs whose trainings took a minute and more."""
    for name, steps in (('1', range(10, 60, 10)), ('2', range(first, 110, 10))):
        write_log(tmp_path, name, [{**record, 'time': 2.0} for record in training(*steps)])
    (tmp_path / '1').rename(tmp_path / 'a_1')
    (tmp_path / '2').rename(tmp_path / 'b_2')
    assert last_step(tmp_path, _1=5000 + gap, _2=5000) == 100


def test_read_log_takes_a_run_whose_first_folders_are_gone(tmp_path):
    write_log(tmp_path, '1', training(60, 70))
    assert last_step(tmp_path) == 70


def test_pick_metric():
    records = [{METRICS[2]: 1.0, 'step': 1}, {METRICS[1]: 0.1, METRICS[2]: 2.0, 'step': 2}]
    assert pick_metric(records, None) == METRICS[1]
    assert pick_metric(records, 'other') == 'other'
    assert pick_metric([], None) is None


def test_curves(root, tmp_path):
    """As a user calls it."""
    for name, top1 in (('plain', 70.0), ('scconv', 72.0)):
        write_log(tmp_path / name, '1', [*training(1, 2), *validation((1, top1))])
    command = [sys.executable, str(root / 'tools' / 'plot.py'), 'curves', 'plain', 'scconv', '--out', 'new/curves.png']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == 'curves: new/curves.png\n', done.stderr
    assert (tmp_path / 'new' / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_curves_content(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    run = write_log(tmp_path / 'plain', '1', [*training(1, 2), *validation((1, 70.0), (2, 71.0))])
    assert tool('plot', 'curves', run, '--out', tmp_path / 'c.png')[0] == 0
    loss, metric = figures[0].axes
    assert lines_of(loss) == {'plain': [(1, 1.0), (2, 0.5)]}
    assert lines_of(metric) == {'plain: 71.000': [(1, 70.0), (2, 71.0)]} and metric.get_ylabel() == 'accuracy/top1'


def test_runs_are_told_apart_by_their_folders(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    runs = [write_log(tmp_path / name / 'seed0', '1', [*training(1, 2)]) for name in ('plain', 'scconv')]
    assert tool('plot', 'curves', *runs, '--out', tmp_path / 'c.png')[0] == 0
    assert list(lines_of(figures[0].axes[0])) == ['plain/seed0', 'scconv/seed0']


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tool, tmp_path):
    (tmp_path / 'cost.csv').write_text(FIGURE4, encoding='utf-8-sig')
    status, _, error = tool('plot', 'figure4', tmp_path / 'cost.csv', '--out', tmp_path / 'f.png')
    assert status == 0, error


def test_figure4(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    (tmp_path / 'cost.csv').write_text(FIGURE4)
    run = write_log(tmp_path / 'run', '1', [*training(1), *validation((1, 78.0), (2, 80.25))])
    args = ['--run', f'3/4={run}', '--out', tmp_path / 'f.png']
    assert tool('plot', 'figure4', tmp_path / 'cost.csv', *args)[0] == 0
    flops, params, top1 = (lines_of(axes) for axes in figures[0].axes)
    assert flops == {'this code': [(0.125, 0.74), (0.5, 0.83), (0.75, 0.9)], 'paper, printed': [(0.5, 0.83118)]}
    assert params['this code'] == [(0.125, 13.1), (0.5, 14.7), (0.75, 15.9)]
    assert top1 == {
        'this code': [(0.74, 79.2), (0.83, 79.7), (0.9, 80.25)],
        'paper, printed': [(0.83118, 79.89)],
    }


def test_figure4_of_cost_alone(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    (tmp_path / 'cost.csv').write_text('alpha,flops_G,params_M\n1/2,0.83,14.7\n')
    assert tool('plot', 'figure4', tmp_path / 'cost.csv', '--out', tmp_path / 'f.png')[0] == 0
    assert len(figures[0].axes) == 2


def test_figure6(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    (tmp_path / 'own.csv').write_text('name,flops_G,top1\nmine,2.72,76.2\n')
    args = ['--out', tmp_path / 'f.png']
    assert tool('plot', 'figure6', tmp_path / 'own.csv', *args)[0] == 0
    (axes,) = figures[0].axes
    lines = lines_of(axes)
    assert lines.pop('SCConv') == [(2.7, 76.41), (2.87, 76.79)], 'R101 is not of Figure 6'
    assert lines.pop('ResNet') == [(4.09, 76.15)]
    assert [(2.72, 76.2)] in lines.values()
    assert {'alpha = 1/2', 'alpha = 3/4', 'mine'} <= {text.get_text() for text in axes.texts}


def test_figure4_counts_our_configs(tool, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    assert tool('plot', 'figure4', '--out', tmp_path / 'f.png')[0] == 0
    flops = dict(lines_of(figures[0].axes[0])['this code'])
    assert list(flops) == [n / 8 for n in range(1, 8)]
    # The paper's rule at alpha = 1/8, 1/2 and 7/8.
    for alpha, want in ((1 / 8, 0.7708), (1 / 2, 0.8312), (7 / 8, 0.9111)):
        assert flops[alpha] == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['curves', 'nowhere'], 'no log of a run'),
        (['curves', 'run', '--metric', 'coco/bbox_mAP'], 'no coco/bbox_mAP in the log of run'),
        (['curves', 'run', '--out', 'run/1/vis_data/scalars.json/x.png'], 'cannot write'),
        (['curves', 'run', '--out', 'x.unknown'], 'cannot write x.unknown'),
        (['curves', 'run', '--out', 'figure'], '--out figure needs a suffix that says the format'),
        (['curves', 'run', 'detector'], 'the runs have accuracy/top1 and coco/bbox_mAP: plot them apart'),
        (['cost', 'sweep.csv'], 'has results of accuracy/top1 and coco/bbox_mAP: no axis fits them all'),
        (['figure4', 'latin.csv'], 'latin.csv is not a CSV file in UTF-8'),
        (['curves', 'broken'], 'line 1 of the log is not JSON'),
        (['figure4', 'nowhere.csv'], 'cannot read nowhere.csv'),
        (['figure4', 'own.csv'], 'own.csv has no column alpha, params_M'),
        (['figure4', 'bad.csv'], 'line 2 of bad.csv'),
        (['figure4', 'empty.csv'], 'empty.csv has no rows'),
        (['figure4', 'cost.csv', '--run', '1/3=run'], 'no row with alpha=1/3'),
        (['figure4', 'cost.csv', '--run', 'run'], '--run must be ALPHA=WORK_DIR'),
    ],
)
def test_user_errors(tool, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / 'run', '1', [*training(1), *validation((1, 78.0))])
    broken = write_log(tmp_path / 'broken', '1', []) / '1' / 'vis_data' / 'scalars.json'
    broken.write_text('{"loss": \n')
    (tmp_path / 'own.csv').write_text('name,flops_G,top1\nmine,2.72,76.2\n')
    (tmp_path / 'cost.csv').write_text(FIGURE4)
    (tmp_path / 'bad.csv').write_text('alpha,flops_G,params_M\nhalf,1,2\n')
    (tmp_path / 'empty.csv').write_text('alpha,flops_G,params_M\n')
    (tmp_path / 'latin.csv').write_bytes('alpha,flops_G,params_M,Größe\n'.encode('latin-1'))
    write_log(tmp_path / 'detector', '1', [*training(1), {'coco/bbox_mAP': 0.5, 'step': 1}])
    (tmp_path / 'sweep.csv').write_text(SWEEP.replace('thin,3/3,coco/bbox_mAP', 'thin,3/3,accuracy/top1'))
    status, out, error = tool('plot', *args)
    assert status == 2 and out == ''
    assert error.startswith('error: ') and message in error and error.count('\n') == 1
