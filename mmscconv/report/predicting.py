"""Tests a checkpoint on the validation set of its config, as tools/test.py does, and keeps the predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmscconv.checks.files import datasets
from mmscconv.engine.launch import checked_runner, run_errors_named
from mmscconv.errors import UserError
from mmscconv.paper.measures import record_gate_shares

GATE_BATCHES = 8  # of which the gates' shares are measured: each costs a second pass through the gates


@dataclass(frozen=True)
class Predictions:
    """Results of a run on the validation set.

    Args:
        truth: Ground truth as the evaluator of the config has read it, a pycocotools ``COCO``.
        found: Predictions in COCO's form of results.
        class_ids: Category id of each class, in the order of the classes.
        image_ids: Images that were tested, in the order of the ground truth.
        of_images: Number of images of the ground truth.
        most: ``maxDets`` of the evaluation.
        paths: File of each image, by id.
        shapes: (H, W) of each image as it was loaded, by id.
        turned: Whether images are loaded as their EXIF data say.
        gates: Share of informative positions of each SRU, by its name; empty without SRU.
        runner: Runner with the model and the data set.
    """

    truth: Any
    found: list[dict[str, Any]]
    class_ids: list[int]
    image_ids: list[int]
    of_images: int
    most: list[int]
    paths: dict[int, str]
    shapes: dict[int, tuple[int, int]]
    turned: bool
    gates: dict[str, float]
    runner: Runner


def predict(cfg: Config, checkpoint: Path, folder: Path, trusted: bool) -> Predictions:
    """Test ``checkpoint`` on the config's validation set; predictions and logs are written into ``folder``.

    Raises:
        UserError: A config without a detector or without COCO's metric, missing files, or a
            checkpoint of another model.
    """
    metric = _coco_metric(cfg)
    cfg.launcher = 'none'
    cfg.work_dir = str(folder)
    cfg.load_from, cfg.resume = str(checkpoint), False
    metric['outfile_prefix'] = str(folder / 'predictions')
    cfg.test_dataloader, cfg.test_evaluator, cfg.test_cfg = cfg.val_dataloader, metric, dict(type='TestLoop')
    runner = checked_runner(cfg, ('test',), trusted)
    recorder = _Recorder()
    runner.register_hook(recorder)
    with run_errors_named():
        runner.test()
    (evaluator,) = runner.test_evaluator.metrics
    return Predictions(
        # The evaluator's copy, so that the page counts the mended annotations in the same way.
        truth=evaluator._coco_api,
        found=json.loads((folder / 'predictions.bbox.json').read_text()),
        class_ids=list(evaluator.cat_ids),
        # The evaluator counts every image of its file as one without a detection, also those that were left out.
        image_ids=[image_id for image_id in evaluator.img_ids if image_id in recorder.paths],
        of_images=len(evaluator.img_ids),
        most=list(evaluator.proposal_nums),
        paths=recorder.paths,
        shapes=recorder.shapes,
        turned=_turned(cfg.val_dataloader),
        gates=dict(recorder.gates),
        runner=runner,
    )


def _coco_metric(cfg: Config) -> Any:
    evaluators = cfg.get('val_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    for evaluator in evaluators:
        kinds = evaluator.get('metric', 'bbox')
        if str(evaluator.get('type')).endswith('CocoMetric') and 'bbox' in (
            [kinds] if isinstance(kinds, str) else kinds
        ):
            return evaluator.copy()
    raise UserError(f'a report needs a detector with CocoMetric (bbox) as val_evaluator: {cfg.filename}')


def _turned(loader: Mapping[str, Any]) -> bool:
    steps = [step for dataset in datasets(loader) for step in dataset.get('pipeline') or ()]
    return not any(
        str(step.get('color_type')).endswith(('ignore_orientation', 'unchanged'))
        or step.get('imdecode_backend') in ('turbojpeg', 'tifffile')  # which know nothing of EXIF
        for step in steps
    )


class _Recorder(Hook):
    """Keeps the file of each image, and each SRU's share of informative positions in the first batches."""

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}
        self.shapes: dict[int, tuple[int, int]] = {}
        self._recording = ExitStack()
        self.gates: Mapping[str, float] = {}

    def before_test(self, runner: Runner) -> None:
        self.gates = self._recording.enter_context(record_gate_shares(runner.model))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        self.paths |= {sample.img_id: sample.img_path for sample in outputs or ()}
        self.shapes |= {sample.img_id: tuple(sample.ori_shape[:2]) for sample in outputs or ()}
        if batch_idx + 1 == GATE_BATCHES:
            self._recording.close()

    def after_test(self, runner: Runner) -> None:
        self._recording.close()
