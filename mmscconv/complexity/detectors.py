"""Counts of a detector's backbone, neck and head."""

from __future__ import annotations

from mmscconv.complexity.counting import Complexity

HEAD = 'head'


def is_detector(whole: Complexity) -> bool:
    """Return True for counts of a detector: a backbone and a head with a name of its own, such as ``bbox_head``."""
    parts = {name.partition('.')[0] for name in whole.stages}
    return 'backbone' in parts and any('head' in name for name in parts - {HEAD})


def in_head(stage: str) -> bool:
    """Return whether a stage of a detector belongs to a head."""
    return 'head' in stage.partition('.')[0]


def detector_parts(whole: Complexity) -> dict[str, Complexity]:
    """Return the counts of the parts of a detector by name; all heads are one part.

    Args:
        whole: Of :func:`mmscconv.complexity.count`.
    """
    parts: dict[str, Complexity] = {}
    for name, stage in whole.stages.items():
        name = HEAD if in_head(name) else name.partition('.')[0]
        parts[name] = _sum(parts.get(name, Complexity(0, 0, 0, 0)), stage)
    if HEAD in parts:
        # mmdet calls a head's forward without its hooks, by which torch counts for a module.
        head, others = parts.pop(HEAD), list(parts.values())
        parts[HEAD] = Complexity(
            head.params,
            head.group_norm_params,
            whole.macs - sum(part.macs for part in others),
            whole.paper_ops - sum(part.paper_ops for part in others),
        )
    return parts


def _sum(a: Complexity, b: Complexity) -> Complexity:
    return Complexity(
        a.params + b.params, a.group_norm_params + b.group_norm_params, a.macs + b.macs, a.paper_ops + b.paper_ops
    )
