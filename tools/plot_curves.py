#!/usr/bin/env python
"""Plot the loss and the validation metric of one or several runs from their logs."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.engine.errors import UserError, run

METRICS = ('coco/bbox_mAP', 'voc/bbox_mAP', 'accuracy/top1')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('runs', nargs='+', help='work dirs; the newest log of each is taken')
    parser.add_argument('--out', default='curves.png', help='image to write (default: %(default)s)')
    parser.add_argument('--metric', help=f'metric of validation (default: the first found of {", ".join(METRICS)})')
    return parser.parse_args()


def read_log(work_dir: str) -> tuple[list[dict], list[dict]]:
    """Return the training and the validation records of a work dir's newest run."""
    logs = sorted(Path(work_dir).glob('*/vis_data/scalars.json'))
    if not logs:
        raise UserError(f'no log of a run (*/vis_data/scalars.json) in {work_dir}')
    records = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    training = [r for r in records if 'loss' in r]
    return training, [r for r in records if 'loss' not in r]


def main() -> None:
    args = parse_args()
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, (loss_axes, metric_axes) = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
    for work_dir in args.runs:
        training, validation = read_log(work_dir)
        name = Path(work_dir).name
        loss_axes.plot([r['step'] for r in training], [r['loss'] for r in training], label=name)
        metric = args.metric or next((m for m in METRICS if any(m in r for r in validation)), None)
        points = [(r['step'], r[metric]) for r in validation if metric in r]
        if args.metric and not points:
            raise UserError(f'no {metric} in the log of {work_dir}')
        if points:
            metric_axes.plot(*zip(*points, strict=True), marker='o', label=f'{name}: {points[-1][1]:.3f}')
            metric_axes.set_ylabel(metric)
    loss_axes.set(xlabel='iteration', ylabel='loss', yscale='log')
    metric_axes.set_xlabel('epoch or iteration of validation')
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f'curves: {args.out}')


if __name__ == '__main__':
    sys.exit(run(main))
