"""Detection in image files with any config and checkpoint, by mmdet's inference functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
from mmdet.apis import inference_detector, init_detector
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.runner.checkpoint import _load_checkpoint_to_model

import mmscconv.models  # noqa: F401, registers the layers also for configs that do not name it
from mmscconv.checks.classes import check_heads
from mmscconv.checks.device import device_of
from mmscconv.checks.image_files import SUFFIXES, truncation
from mmscconv.engine.class_names import known_metainfo
from mmscconv.errors import UserError
from mmscconv.foreign_errors import explained, flat_message
from mmscconv.storage.checkpoint_match import require_filled
from mmscconv.storage.checkpoints import load_checkpoint


@dataclass(frozen=True)
class Detection:
    """One object.

    Args:
        image: Path of the image.
        label: Name of the class.
        score: In [0, 1].
        box: x and y of the upper left corner, width and height, in pixels of the image.
    """

    image: str
    label: str
    score: float
    box: tuple[float, float, float, float]


def image_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files among ``paths``, and those in the folders among them by their suffix, sorted.

    Raises:
        UserError: A path is not there, a folder holds no image, a file is empty or cut short, or two have one name.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f'no image ({", ".join(SUFFIXES)}) in the folder {path}')
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f'image is not there: {path}')
    names: dict[str, Path] = {}
    for file in files:
        if names.setdefault(file.name, file) != file:
            raise UserError(f'two images have one name, {names[file.name]} and {file}: detect in them one by one')
        complaint = truncation(file) or (None if cv2.haveImageReader(str(file)) else 'OpenCV does not know its format')
        if complaint:
            raise UserError(f'image cannot be read: {file}: {complaint}')
    return list(dict.fromkeys(files))


def make_folder(folder: Path, files: Sequence[Path]) -> None:
    """Make the folder that drawings of ``files`` go to.

    Raises:
        UserError: It is the folder of an image, by a link, too, or cannot be made.
    """
    if any(folder.resolve() in (file.parent.resolve(), file.resolve().parent) for file in files):
        raise UserError(f'the drawings would replace the images in {folder}: give another --out')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make --out {folder}: {error.strerror}') from error


def load_detector(cfg: Config, checkpoint: Path, trusted: bool, device: str) -> Any:
    """Return the detector of a config, an ``nn.Module``, with the weights of a checkpoint, in eval mode.

    Its classes are those that the checkpoint was trained with or, if it names none, the config's.

    Raises:
        UserError: The config has no detector, the checkpoint cannot be read or is not of this model, neither of them
            names the classes, or the device is not there.
    """
    if 'bbox_head' not in cfg.get('model', {}) and 'roi_head' not in cfg.get('model', {}):
        raise UserError(f'config has no detector: {cfg.filename}')
    device_of(device)
    content = load_checkpoint(checkpoint, trusted)
    cfg = cfg.copy()
    cfg.load_from = None
    with explained(f'cannot build the model of {cfg.filename}'):
        model = init_detector(cfg, None, device=device, cfg_options={'model.backbone.init_cfg': None})
    require_filled(model, content, cfg, str(checkpoint))
    _load_checkpoint_to_model(model, content)
    model.dataset_meta = _names(content, cfg, checkpoint)  # mmdet would take COCO's for unknown ones
    check_heads(model, model.dataset_meta, str(checkpoint))
    return model


def _names(content: Mapping[str, Any], cfg: Config, checkpoint: Path) -> dict[str, Any]:
    """Return :func:`mmscconv.engine.class_names.known_metainfo` with classes."""
    found = known_metainfo(content, cfg)
    if not found.get('classes'):
        raise UserError(f'neither {checkpoint} nor {cfg.filename} names the classes: set metainfo.classes there')
    return found


def detect(model: Any, files: Sequence[Path], least_score: float, folder: Path | None) -> Iterator[Detection]:
    """Give the objects in each image, the surest first, and draw them into files of the same names in ``folder``.

    Args:
        model: Detector from :func:`load_detector`.
        files: Images, as from :func:`image_files`.
        least_score: Least score of an object, in [0, 1].
        folder: Folder of the drawings (:func:`make_folder`); None to draw nothing.

    Raises:
        UserError: An image cannot be decoded or resized.
    """
    visualizer = DetLocalVisualizer(name='detect')
    visualizer.dataset_meta = model.dataset_meta
    names = model.dataset_meta['classes']
    for file in files:
        image = mmcv.imread(str(file))
        if image is None:
            raise UserError(f'image cannot be read: {file}: OpenCV cannot decode it')
        try:
            result = inference_detector(model, str(file))
        except cv2.error as error:  # a side that is resized to nothing, for example
            raise UserError(f'image cannot be prepared: {file}: {flat_message(error)}') from error
        found = result.pred_instances[result.pred_instances.scores >= least_score].cpu()
        for label, score, box in zip(*(found[key].tolist() for key in ('labels', 'scores', 'bboxes')), strict=True):
            left, top, right, bottom = box
            yield Detection(str(file), names[label], score, (left, top, right - left, bottom - top))
        if folder:
            visualizer.add_datasample(
                file.name,
                mmcv.bgr2rgb(image),
                result,
                draw_gt=False,
                show=False,
                pred_score_thr=least_score,
                out_file=str(folder / file.name),
            )
