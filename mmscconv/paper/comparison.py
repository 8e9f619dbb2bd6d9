"""Our counts beside the complexity columns of the paper's Tables 1-5."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from mmscconv.complexity.configs import count_config
from mmscconv.complexity.counting import Complexity
from mmscconv.configuration import read_config
from mmscconv.paper.tables import PaperRow, printed
from mmscconv.shipped import configs_folder


@dataclass(frozen=True)
class CountedRow:
    """A printed row beside our counts for its config: ``params`` and ``flops`` by the row's own rule."""

    row: PaperRow
    backbone: Complexity
    params: int
    flops: int

    @property
    def params_error(self) -> float:
        """Relative error of our parameters against the printed ones, in percent."""
        return error(self.params, self.row.params)

    @property
    def flops_error(self) -> float:
        """Relative error of our operations against the printed FLOPs, in percent."""
        return error(self.flops, self.row.flops)


def error(ours: int, number: str) -> float:
    """Return the relative error of ``ours`` against a printed number, in percent."""
    return 100 * (ours / printed(number) - 1)


@cache
def _count(config: str, classes: int | None) -> Complexity:
    return count_config(read_config(configs_folder() / config), classes, backbone_alone=True)


def compare(row: PaperRow) -> CountedRow | None:
    """Count the network of ``row``, once per process; None if the row has no config."""
    if not row.config:
        return None
    network = _count(row.config, row.classes)
    source = _count(row.params_config, None) if row.params_config else network
    return CountedRow(
        row=row,
        backbone=network,
        params=source.params if row.group_norm else source.paper_params,
        flops=network.macs if row.flops_rule == 'conv' else network.paper_ops,
    )
