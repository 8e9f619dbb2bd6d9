#!/usr/bin/env python
"""Plot training curves, a sweep's accuracy over cost, or the paper's Figure 4 or 6 with your own numbers."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.engine.metrics import kind_of
from mmscconv.engine.results import METRICS, pick_metric, read_log
from mmscconv.errors import UserError, run
from mmscconv.paper.tables import PaperRow, paper_rows, printed
from mmscconv.storage.disk import replacing

CIFAR_CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'cifar'
PAPER_ALPHA = Fraction(1, 2)  # the one ratio of Figure 4 that the paper also prints, in Table 2
TOP1 = 'accuracy/top1'
OURS, PAPER = 'tab:red', 'tab:gray'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)

    curves = commands.add_parser('curves', help='loss and validation metric of runs, from their logs')
    curves.add_argument(
        'runs', nargs='+', help='work dirs; resumed runs are joined, of restarted runs the newest is drawn'
    )
    curves.add_argument('--metric', help=f'metric of validation (default: the first found of {", ".join(METRICS)})')

    figure4 = commands.add_parser('figure4', help='cost and accuracy against the split ratio alpha')
    figure4.add_argument(
        'csv',
        nargs='?',
        help='file with the columns alpha,flops_G,params_M,top1, the last may be empty (default: count our configs)',
    )
    figure4.add_argument(
        '--run', action='append', default=[], metavar='ALPHA=WORK_DIR', help=f"take an alpha's last {TOP1} from a run"
    )

    figure6 = commands.add_parser('figure6', help='ImageNet top-1 against FLOPs')
    figure6.add_argument('csv', nargs='?', help='own results, with the columns name,flops_G,top1')

    cost = commands.add_parser('cost', help='accuracy of the configs of a sweep against their multiply-adds')
    cost.add_argument('csv', help='table.csv of tools/sweep.py')
    cost.add_argument(
        '--curve',
        nargs='+',
        default=[],
        metavar='NAME',
        help='configs to join by a line, such as one network in several widths',
    )

    for name, command in commands.choices.items():
        command.add_argument('--out', default=f'{name}.png', help='image to write (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if not Path(args.out).suffix:
        raise UserError(f'--out {args.out} needs a suffix that says the format, such as .png or .pdf')
    import matplotlib

    matplotlib.use('Agg')
    figure = {'curves': curves, 'figure4': figure4, 'figure6': figure6, 'cost': cost}[args.command](args)
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.out) as path:
            figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'cannot write {args.out}: {error}') from error
    print(f'{args.command}: {args.out}')


def curves(args: argparse.Namespace) -> Any:
    """Draw loss and validation metric of the runs."""
    from matplotlib import pyplot

    figure, (loss_axes, metric_axes) = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
    metrics = set()
    for work_dir, name in zip(args.runs, distinct_names(args.runs), strict=True):
        training, validation = read_log(work_dir)
        loss_axes.plot([r['step'] for r in training], [r['loss'] for r in training], label=name)
        metric = pick_metric(validation, args.metric)
        points = [(r['step'], r[metric]) for r in validation if metric in r]
        if args.metric and not points:
            raise UserError(f'no {metric} in the log of {work_dir}')
        if points:
            metric_axes.plot(*zip(*points, strict=True), marker='o', label=f'{name}: {points[-1][1]:.3f}')
            metric_axes.set_ylabel(metric)
            metrics.add(metric)
    if len(metrics) > 1:
        raise UserError(f'the runs have {" and ".join(sorted(metrics))}: plot them apart, or choose one by --metric')
    loss_axes.set(xlabel='iteration', ylabel='loss', yscale='log')
    metric_axes.set_xlabel('epoch or iteration of validation')
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def distinct_names(paths: Sequence[str]) -> list[str]:
    """Return the end of each path, as many of its folders as tell all paths apart."""
    parts = [Path(path).resolve().parts for path in paths]
    longest = max(map(len, parts))
    length = next((n for n in range(1, longest) if len({p[-n:] for p in parts}) == len({*parts})), longest)
    return ['/'.join(p[-length:]) for p in parts]


def figure4(args: argparse.Namespace) -> Any:
    """Draw FLOPs and parameters against alpha, and top-1 against FLOPs for rows with a top-1."""
    from matplotlib import pyplot

    columns = {'alpha': Fraction, 'flops_G': float, 'params_M': float}
    rows = read_csv(args.csv, columns, {'top1': float}) if args.csv else counted_rows()
    rows.sort(key=lambda row: row['alpha'])
    for entry in args.run:
        alpha, work_dir = alpha_and_run(entry)
        chosen = [row for row in rows if row['alpha'] == alpha]
        if not chosen:
            raise UserError(f'--run {entry}: no row with alpha={alpha}')
        chosen[0]['top1'] = last_top1(work_dir)
    known = [row for row in rows if row['top1'] is not None]
    paper = paper_point()
    star = {'color': PAPER, 'marker': '*', 'ms': 14, 'ls': ''}
    printed_costs = {'flops_G': printed(paper.flops) / 1e9, 'params_M': printed(paper.params) / 1e6}

    figure, panels = pyplot.subplots(1, 3 if known else 2, figsize=(14 if known else 9.5, 4), layout='constrained')
    alphas = [float(row['alpha']) for row in rows]
    for axes, column, label in ((panels[0], 'flops_G', 'FLOPs (G)'), (panels[1], 'params_M', 'parameters (M)')):
        axes.plot(alphas, [row[column] for row in rows], color=OURS, marker='o', label='this code')
        axes.plot(
            float(PAPER_ALPHA), printed_costs[column], color=PAPER, marker='*', ms=14, ls='', label='paper, printed'
        )
        axes.set(xlabel=r'split ratio $\alpha$', ylabel=label)
        axes.set_xticks(alphas, [str(row['alpha']) for row in rows])
    if known:
        top1 = paper.metrics['cifar100_top1']
        panels[2].plot(
            [row['flops_G'] for row in known], [row['top1'] for row in known], color=OURS, marker='o', label='this code'
        )
        panels[2].plot(printed_costs['flops_G'], top1, label='paper, printed', **star)
        for row in known:
            annotate(panels[2], rf'$\alpha$={row["alpha"]}', row['flops_G'], row['top1'])
        panels[2].set(xlabel='FLOPs (G)', ylabel='top-1 (%)')
    for axes in panels:
        axes.margins(0.12)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle('Figure 4: the split ratio of SCConv-R50, CIFAR-100')
    return figure


def counted_rows() -> list[dict[str, Any]]:
    """Return the cost of SCConv-R50 at alpha = 1/8 ... 7/8, by the paper's rule, from our configs."""
    from mmscconv.complexity import count_config
    from mmscconv.configuration import read_config

    rows = []
    for eighths in range(1, 8):
        name = 'scconv' if eighths == 4 else f'scconv_alpha{eighths}-8'
        counted = count_config(read_config(CIFAR_CONFIGS / f'{name}_resnet50_cifar100.py'))
        costs = {'flops_G': counted.paper_ops / 1e9, 'params_M': counted.paper_params / 1e6}
        rows.append({'alpha': Fraction(eighths, 8), **costs, 'top1': None})
    return rows


def figure6(args: argparse.Namespace) -> Any:
    """Draw the points of Table 3, one line for each method, and own results as stars."""
    from matplotlib import pyplot
    from matplotlib.colors import to_rgb

    # The paper's Figure 6 is for ResNet-50 alone.
    rows = [row for row in paper_rows() if row.table == 3 and 'R101' not in row.method]
    own = read_csv(args.csv, {'name': str, 'flops_G': float, 'top1': float}) if args.csv else []
    families: dict[str, list[PaperRow]] = {}
    for row in rows:
        families.setdefault(method_family(row.method), []).append(row)

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout='constrained')
    colours = cycle(c for c in pyplot.get_cmap('tab10').colors if c != to_rgb(OURS))
    for family, points in families.items():
        points.sort(key=lambda row: printed(row.flops))
        style = dict(color=OURS, lw=3, ms=8) if family == 'SCConv' else dict(color=next(colours), lw=1)
        coordinates = [(printed(p.flops) / 1e9, p.metrics['imagenet_top1']) for p in points]
        axes.plot(*zip(*coordinates, strict=True), marker='o', label=family, **style)
        for p, xy in zip(points, coordinates, strict=True) if len(points) > 1 else []:
            annotate(axes, p.settings, *xy)
    for row in own:
        axes.plot(row['flops_G'], row['top1'], color='black', marker='*', ms=15, ls='')
        annotate(axes, row['name'], row['flops_G'], row['top1'], weight='bold', ha='center', xytext=(0, 10))
    if own:
        axes.plot([], [], color='black', marker='*', ms=12, ls='', label='measured here')
    axes.set(
        xlabel='FLOPs (G)', ylabel='ImageNet top-1 (%)', title='Figure 6: circles as the paper prints them, Table 3'
    )
    axes.grid(alpha=0.3)
    axes.margins(0.1)
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def cost(args: argparse.Namespace) -> Any:
    """Draw each config's mean last result over seeds, with its standard deviation, against its multiply-adds."""
    from matplotlib import pyplot
    from matplotlib.colors import to_rgb

    optional = {'last': float, 'std': float, 'multiply_adds': float}
    rows = [row for row in read_csv(args.csv, {'config': str, 'metric': str}, optional) if row['last'] is not None]
    for row in rows:
        if row['multiply_adds'] is None:
            raise UserError(f'{args.csv} has no multiply-adds of {row["config"]}: it could not be counted')
    measured = {row['config']: row for row in rows}
    unknown = [name for name in args.curve if name not in measured]
    if unknown or not rows:
        raise UserError(f'{args.csv} has no result of {unknown[0] if unknown else "any config"}')

    metrics = sorted({row['metric'] for row in rows})
    if len(metrics) > 1:
        raise UserError(f'{args.csv} has results of {" and ".join(metrics)}: no axis fits them all')

    figure, axes = pyplot.subplots(figsize=(10, 5.5), layout='constrained')
    curve = sorted((measured[name] for name in args.curve), key=lambda row: row['multiply_adds'])
    axes.plot([row['multiply_adds'] / 1e6 for row in curve], [row['last'] for row in curve], color=PAPER, zorder=1)
    markers = cycle('osD^vP*X')
    colours = cycle(c for c in pyplot.get_cmap('tab10').colors if c != to_rgb(PAPER))
    for row in rows:
        x, style = row['multiply_adds'] / 1e6, {'marker': next(markers), 'capsize': 3, 'ms': 7}
        style['color'] = PAPER if row['config'] in args.curve else next(colours)
        axes.errorbar(x, row['last'], yerr=row['std'], label=row['config'], **style)
    axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    unit = ' (%)' if kind_of(metrics[0]) else ''  # values of unknown metrics are in the table as they are
    axes.set(xlabel='multiply-adds (M)', ylabel=f'{metrics[0]}{unit}, mean and standard deviation over seeds')
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    return figure


def annotate(axes: Any, text: str, x: float, y: float, **style: Any) -> None:
    axes.annotate(text, (x, y), **{'xytext': (6, -11), 'textcoords': 'offset points', 'fontsize': 9, **style})


def method_family(method: str) -> str:
    """Return the method without its backbone, such as 'SlimConv' of 'SlimConv-R50'; 'ResNet' for baselines."""
    return 'ResNet' if method.startswith('ResNet') else method.split('-')[0]


def paper_point() -> PaperRow:
    """Return SCConv-R50's row of Table 2."""
    return next(row for row in paper_rows() if row.table == 2 and row.method == 'SCConv-R50')


def alpha_and_run(entry: str) -> tuple[Fraction, str]:
    alpha, _, work_dir = entry.partition('=')
    try:
        return Fraction(alpha), work_dir
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f'--run must be ALPHA=WORK_DIR such as 1/2=work_dirs/half, got {entry}') from error


def last_top1(work_dir: str) -> float:
    values = [record[TOP1] for record in read_log(work_dir)[1] if TOP1 in record]
    if not values:
        raise UserError(f'no {TOP1} in the log of {work_dir}')
    return values[-1]


def read_csv(path: str, columns: dict[str, type], optional: dict[str, type] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a CSV file, columns converted; ``optional`` ones may be missing or empty and give None."""
    optional = optional or {}
    try:
        with Path(path).open(newline='', encoding='utf-8-sig') as file:  # also with a mark of the byte order
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f'{path} has no column {", ".join(missing)}; its first line must name the columns')
            content = list(reader)
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} is not a CSV file in UTF-8: {error}') from error
    rows = []
    for number, row in enumerate(content, 2):
        try:
            values = {name: kind(row[name]) for name, kind in columns.items()}
            values |= {name: kind(row[name]) if row.get(name) else None for name, kind in optional.items()}
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise UserError(f'line {number} of {path} does not hold numbers for its columns: {error}') from error
        rows.append(values)
    if not rows:
        raise UserError(f'{path} has no rows')
    return rows


if __name__ == '__main__':
    sys.exit(run(main))
