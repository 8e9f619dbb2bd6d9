"""Metadata of an exported file: its user needs the preprocessing of images and the class names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

import mmscconv
from mmscconv.configuration import holds_rgb
from mmscconv.export.custom_op import OP
from mmscconv.export.graphs import Graph, is_classifier
from mmscconv.storage.checkpoints import classes_in


def describe(
    cfg: Config, model: nn.Module, graph: Graph, checkpoint: Mapping[str, Any], deployed: bool, custom_op: bool = False
) -> dict[str, str]:
    """Return the metadata, each value as JSON.

    ``mean`` and ``std`` (pixel values, 0 to 255) are in the order ``channel_order``. Images are
    padded with 0 at the bottom and right, after normalization.
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
        classes=classes_in(checkpoint) or _classes_of(cfg),
        custom_ops=[OP] if custom_op else [],
    )
    return {key: json.dumps(value) for key, value in content.items()}


def numbers(preprocessor: nn.Module, name: str) -> Any:
    """Return a buffer of the data preprocessor, or None if the preprocessor does not normalize."""
    return getattr(preprocessor, name, None) if getattr(preprocessor, '_enable_normalize', True) else None


def _classes_of(cfg: Config) -> list[str]:
    """Return the class names of the config; empty if it has none."""
    meta = cfg.get('metainfo') or {}
    return list(meta.get('classes', meta.get('CLASSES')) or [])
