"""Metadata of an exported file: its user needs the preprocessing of images and the class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

import mmscconv
from mmscconv.checks.classes import check_heads
from mmscconv.configuration import holds_rgb
from mmscconv.engine.class_names import known_metainfo
from mmscconv.errors import warn
from mmscconv.export.custom_op import OP
from mmscconv.export.graphs import Graph, is_classifier
from mmscconv.storage.checkpoints import classes_in


def describe(
    cfg: Config, model: nn.Module, graph: Graph, classes: Sequence[str], deployed: bool, custom_op: bool = False
) -> dict[str, str]:
    """Return the metadata, each value as JSON.

    ``mean`` and ``std`` (pixel values, 0 to 255) are in the order ``channel_order``. Images are
    padded with ``pad_value`` at the bottom and right, after normalization.
    """
    preprocessor: Any = model.data_preprocessor
    converts = getattr(preprocessor, 'to_rgb', False) or getattr(preprocessor, '_channel_conversion', False)
    mean, std = ([] if t is None else t.flatten().tolist() for t in (numbers(preprocessor, n) for n in ('mean', 'std')))
    content = dict(
        mmscconv=mmscconv.__version__,
        task='classification' if is_classifier(model) else 'detection',
        form='deploy' if deployed else 'training',
        channel_order='RGB' if bool(converts) != holds_rgb(cfg) else 'BGR',
        mean=mean,
        std=std,
        size_divisor=graph.divisor,
        pad_value=getattr(preprocessor, 'pad_value', 0),
        classes=list(classes),
        custom_ops=[OP] if custom_op else [],
    )
    return {key: json.dumps(value) for key, value in content.items()}


def numbers(preprocessor: nn.Module, name: str) -> Any:
    """Return a buffer of the data preprocessor, or None if the preprocessor does not normalize."""
    return getattr(preprocessor, name, None) if getattr(preprocessor, '_enable_normalize', True) else None


def class_names(
    cfg: Config, model: nn.Module, checkpoint: Mapping[str, Any], path: str, tested: Sequence[str] | None
) -> list[str]:
    """Return the names of the model's outputs; none, with a warning, if nothing tells them.

    Args:
        cfg: Config of the model.
        model: Its heads tell how many names there must be.
        checkpoint: Its content, whose names go before the config's.
        path: Path of the checkpoint.
        tested: Names that the test data give their classes, if they are loaded: used where no file names any.

    Raises:
        UserError: The names are no proper ones, or not as many as a head has classes.
    """
    found = known_metainfo(checkpoint, cfg)
    if not found.get('classes') and tested:
        found['classes'] = tested
    if not found.get('classes'):
        warn(f"neither {path} nor {cfg.filename} names the classes: the file's metadata name none (metainfo.classes)")
        return []
    source = path if classes_in(checkpoint) else str(cfg.filename)
    check_heads(model, found, source, is_classifier(model))
    return list(found['classes'])
