"""Counts of a detector's backbone, neck and head."""

from __future__ import annotations

from mmscconv.complexity.counting import Complexity

HEAD = 'head'


def is_detector(whole: Complexity) -> bool:
    """Return True for counts of a detector: a backbone and a head with a name of its own, such as ``bbox_head``."""
    return 'backbone' in whole.parts and any('head' in name for name in whole.parts.keys() - {HEAD})


def in_head(stage: str) -> bool:
    """Return whether a stage of a detector belongs to a head."""
    return 'head' in stage.partition('.')[0]


def detector_parts(whole: Complexity) -> dict[str, Complexity]:
    """Return the counts of the parts of a detector by name; all heads are one part.

    Args:
        whole: Of :func:`mmscconv.complexity.count`.
    """
    parts = {name: part for name, part in whole.parts.items() if not in_head(name)}
    heads = [part for name, part in whole.parts.items() if in_head(name)]
    if heads:
        # mmdet calls a head's forward without its hooks, by which torch counts for a module.
        parts[HEAD] = Complexity(
            sum(head.params for head in heads),
            sum(head.group_norm_params for head in heads),
            whole.macs - sum(part.macs for part in parts.values()),
            whole.paper_ops - sum(part.paper_ops for part in parts.values()),
        )
    return parts
