"""The steps of ``tools/report.py``: predict, count, draw, and write the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config

import mmscconv
from mmscconv.benchmark.machine import environment
from mmscconv.checks.environment import STACKS
from mmscconv.engine.launch import made
from mmscconv.engine.results import read_log
from mmscconv.errors import UserError, one_line
from mmscconv.report import figures
from mmscconv.report.cost import parts, time_images
from mmscconv.report.drawing import CONFUSED, FALSE, HIT, MISSED, draw
from mmscconv.report.evaluation import COLUMNS, evaluate
from mmscconv.report.matching import IOU, best_threshold, confusion, match, worst
from mmscconv.report.page import render
from mmscconv.report.predicting import GATE_BATCHES, Predictions, predict
from mmscconv.storage.disk import replacing, require_writable

LEGEND = {HIT: 'found', MISSED: 'missed', FALSE: 'false', CONFUSED: 'taken for another class'}
KINDS = ('hits', 'confused', 'missed', 'false')
Made = TypeVar('Made')


@dataclass
class ReportJob:
    """A page to write.

    Args:
        cfg: Config of the training.
        work_dir: Folder of the training.
        checkpoint: To judge.
        out: File of the page.
        worst: How many images to draw.
        trusted: Load a checkpoint that may run code.
    """

    cfg: Config
    work_dir: Path
    checkpoint: Path
    out: Path
    worst: int = 12
    trusted: bool = False
    _left_out: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """Write the page, and return lines for the user.

        Raises:
            UserError: The checkpoint cannot be judged, or the page cannot be written.
        """
        text = self.cfg.pretty_text
        folder = self.work_dir / 'report'
        with replacing(self.out) as path:
            require_writable(path)
            with made(str(folder)):
                data = predict(self.cfg, self.checkpoint, folder, self.trusted)
            page = render(**self._contents(data), config=text, name=self.work_dir.resolve().name)
            try:
                path.write_text(page, encoding='utf-8')
            except OSError as error:
                raise UserError(f'cannot write {self.out}: {error.strerror} (pass --out)') from error
        lines = [f'left out: {reason}' for reason in self._left_out]
        if len(data.image_ids) < data.of_images:
            lines.append(f'judged: {len(data.image_ids)} of {data.of_images} images, those that were tested')
        return [*lines, f'report: {self.out}']

    def _contents(self, data: Predictions) -> dict[str, Any]:
        data_set = data.runner.test_dataloader.dataset
        classes: Sequence[str] = data_set.metainfo['classes']
        names = dict(zip(data.class_ids, classes, strict=True))
        evaluation = evaluate(data, classes)
        threshold = best_threshold(data)
        verdicts = match(data, threshold)
        drawn = []
        for verdict in worst(verdicts, self.worst):
            path, shape = data.paths[verdict.image_id], data.shapes[verdict.image_id]
            picture = self._made('an image', partial(draw, path, verdict, names, shape, data.turned))
            if picture:
                drawn.append((Path(path).name, picture, verdict))
        if not data.gates:
            self._left_out.append('shares of informative positions: the model has no SRU')
        counted = self._made('parameters and multiply-adds', lambda: parts(data.runner.model, data_set))
        timing = self._made('time for an image', lambda: time_images(data.runner.model, data_set))
        device = next(data.runner.model.parameters()).device
        return dict(
            checkpoint=self.checkpoint,
            images=len(data.image_ids),
            of_images=data.of_images,
            shown=min(figures.MOST_CELLS, len(classes)),
            classes=len(classes),
            objects=sum(result.objects for result in evaluation.classes),
            columns=COLUMNS,
            evaluation=evaluation,
            precision_recall=figures.precision_recall(evaluation.classes),
            iou=IOU,
            threshold=threshold,
            totals={kind: sum(len(getattr(v, kind)) for v in verdicts) for kind in KINDS},
            confusion=figures.confusion_matrix(confusion(verdicts, data.class_ids), classes),
            legend=LEGEND,
            drawn=drawn,
            curves=self._made('training curves', lambda: figures.curves(*read_log(self.work_dir))),
            gates=data.gates and figures.gate_shares(data.gates),
            gate_batches=GATE_BATCHES,
            counted=counted,
            timing=timing,
            facts=environment(device) | _versions(),
            left_out=self._left_out,
        )

    def _made(self, what: str, make: Callable[[], Made]) -> Made | None:
        """Return ``make()``; if it fails, note the reason on the page and return None."""
        try:
            return make()
        except Exception as error:
            self._left_out.append(f'{what}: {one_line(error)}')
            return None


def _versions() -> dict[str, str]:
    found = {'mmscconv': mmscconv.__version__}
    for pins in (*STACKS.values(), {'pycocotools': 'pycocotools', 'numpy': 'numpy'}):
        for pin in pins.values():
            name = pin.partition('==')[0]
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found | {'CUDA of torch': torch.version.cuda or 'none'}
