"""Figures of the page, as embedded SVG images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmscconv.engine.results import Record, pick_metric
from mmscconv.report.evaluation import ClassResult, Floats

WIDTH = 5.2  # inches; on a telephone of 400 pixels the letters are still 8 pixels high
MOST_CURVES, MOST_CELLS = 10, 12
LONG_NAME = 18


def _figure(height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(WIDTH, height), layout='constrained')


def as_image(figure: Any) -> str:
    """Return a figure as a data URI; an image of its own, as the ids inside of several SVGs would collide."""
    from matplotlib import pyplot

    with io.StringIO() as text:
        figure.savefig(text, format='svg')
        pyplot.close(figure)
        return f'data:image/svg+xml;base64,{base64.b64encode(text.getvalue().encode()).decode()}'


def precision_recall(classes: Sequence[ClassResult]) -> str | None:
    """Return the curves at IoU 0.5 of the classes with most objects, and their mean over all; None without objects."""
    measured = [(c, c.curve) for c in classes if c.curve is not None]
    if not measured:
        return None
    figure, axes = _figure(3.8)
    recall = np.linspace(0, 1, 101)
    for result, curve in sorted(measured, key=lambda pair: pair[0].objects, reverse=True)[:MOST_CURVES]:
        ap = '' if result.values[1] is None else f' {result.values[1]:.2f}'
        label = f'{short(result.name)}{ap}'
        # matplotlib leaves labels out that begin with an underscore.
        axes.plot(recall, curve, lw=1.2, label=f' {label}' if label.startswith('_') else label)
    if len(measured) > 1:
        axes.plot(recall, np.mean([curve for _, curve in measured], axis=0), color='black', lw=2.2, label='mean')
    axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1.01), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc='lower left')
    return as_image(figure)


def confusion_matrix(counts: Floats, classes: Sequence[str]) -> str:
    """Return the matrix as shares of each row; of many classes those that are confused most, and the others as one."""
    names = [*map(short, classes), 'nothing']
    if len(classes) > MOST_CELLS:
        counts, names = _most_confused(counts, names)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = _figure(WIDTH)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    size = 8 if len(names) <= 8 else 6
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = 'white' if shares[row, column] > 0.5 else 'black'
            axes.text(column, row, f'{count:.0f}', ha='center', va='center', color=colour, fontsize=size)
    axes.set_xticks(range(len(names)), names, rotation=45, ha='right', fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel='predicted', ylabel='annotated')
    return as_image(figure)


def _most_confused(counts: Floats, names: Sequence[str]) -> tuple[Floats, list[str]]:
    """Return the matrix with the classes that are confused least summed in one row and column before the last one."""
    errors = (counts.sum(0) + counts.sum(1) - 2 * np.diag(counts))[:-1]
    order = np.argsort(-errors, kind='stable')
    kept, others = np.sort(order[:MOST_CELLS]), order[MOST_CELLS:]
    groups = [*([i] for i in kept), [*others], [len(errors)]]
    merged = np.array([[counts[np.ix_(rows, columns)].sum() for columns in groups] for rows in groups])
    return merged, [*(names[i] for i in kept), f'{len(others)} others', names[-1]]


def curves(training: Sequence[Record], validation: Sequence[Record]) -> str:
    """Return loss and validation metric of a training."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    metric = pick_metric(validation, None)
    figure, panels = pyplot.subplots(2 if metric else 1, 1, figsize=(WIDTH, 5 if metric else 2.8), layout='constrained')
    loss_axes, *rest = np.atleast_1d(panels)
    names = [n for n in ('loss', 'loss_cls', 'loss_bbox') if any(n in r for r in training)]
    for name in names:
        points = [(r['step'], r[name]) for r in training if name in r]
        loss_axes.plot(*zip(*points, strict=True), lw=1.6 if name == 'loss' else 0.9, label=name)
    loss_axes.set(xlabel='iteration', ylabel='loss', yscale='log')
    loss_axes.legend(fontsize=8)
    for axes in rest:
        for key in (f'{metric}', f'{metric}_50', f'{metric}_75'):
            points = [(r['step'], r[key]) for r in validation if key in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker='o', ms=3, label=key.rpartition('/')[2])
        axes.set(xlabel='epoch or iteration of validation', ylabel='validation', ylim=(0, None))
        axes.legend(fontsize=8)
    for axes in (loss_axes, *rest):
        axes.grid(alpha=0.3)
    return as_image(figure)


def gate_shares(gates: Mapping[str, float]) -> str:
    """Return the share of informative positions of each SRU as bars."""
    figure, axes = _figure(max(1.6, 0.6 + 0.2 * len(gates)))
    names = [name.removeprefix('backbone.').removesuffix('.sru') for name in gates]
    collapsed = ['tab:red' if share in (0, 1) else 'tab:blue' for share in gates.values()]
    axes.barh(names, [100 * share for share in gates.values()], color=collapsed)
    axes.invert_yaxis()
    axes.tick_params(axis='y', labelsize=8)
    axes.set(xlabel='informative positions, %', xlim=(0, 100))
    axes.grid(axis='x', alpha=0.3)
    return as_image(figure)


def short(name: str) -> str:
    """Return a class's name, shortened, without characters that matplotlib reads as a formula."""
    name = name.replace('$', r'\$')
    return name if len(name) <= LONG_NAME else f'{name[: LONG_NAME - 1]}…'
