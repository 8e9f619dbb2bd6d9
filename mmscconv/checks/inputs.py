"""All checks of a config's data, in their order, for the tools that are about to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmscconv.checks.classes import check_classes
from mmscconv.checks.evaluators import check_evaluators
from mmscconv.checks.files import check_data
from mmscconv.checks.voc import check_voc


def check_inputs(cfg: Mapping[str, Any], stages: Sequence[str]) -> None:
    """Check folders, classes, annotations and evaluators of ``stages``: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        UserError: The first file that cannot be read, or the first contradiction between two places.
    """
    check_data(cfg, stages)
    check_classes(cfg, stages)
    check_voc(cfg, stages)
    check_evaluators(cfg, [stage for stage in stages if stage != 'train'])
