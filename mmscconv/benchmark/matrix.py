"""The table by which machines are compared: backbones, narrow networks and whole detectors, in every runtime.

Each row is a setting of :func:`mmscconv.benchmark.session.measure`. A last row holds the best runtime of the plain
network against the best of SCConv's, for a user takes the fastest one for either.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch

from mmscconv.benchmark.config_subject import ConfigSubject
from mmscconv.benchmark.jobs import BEST, Setting
from mmscconv.benchmark.reporting import milliseconds
from mmscconv.benchmark.runners import DEPLOY, RUNTIMES, refusal
from mmscconv.benchmark.session import Competitor, Plan, measure
from mmscconv.benchmark.subjects import BackboneSubject, Subject
from mmscconv.benchmark.timing import Quartiles, ratios
from mmscconv.errors import UserError
from mmscconv.shipped import configs_folder
from mmscconv.storage.disk import replacing
from mmscconv.table import Table

# The settings of Tables 3-5, which the shipped configs have.
PAPER = dict(low_squeeze='output', inner_norm=True)
COLUMNS = (
    'row', 'conv, ms', 'conv folded, ms', 'SCConv, ms', 'times faster than conv', 'than conv folded', 'nothing',
)  # fmt: skip
FEATURES = ('avx2', 'avx512_f', 'avx512_bf16', 'amx_bf16', 'avx512_vnni')


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Args:
        name: To choose it by.
        subject: Makes the subject.
        setting: Setting in which it is measured.
        bound: Whether a network without the layers can be measured, ``nothing``.
    """

    name: str
    subject: Callable[[], Subject]
    setting: Setting
    bound: bool = True


@dataclass(frozen=True)
class Result:
    """Medians of a row, in seconds; ratios round by round."""

    name: str
    conv: float
    folded: float | None
    scconv: float
    faster: Quartiles
    faster_than_folded: Quartiles | None
    bound: Quartiles | None

    @property
    def cells(self) -> tuple[str, ...]:
        """Text for ``COLUMNS``."""
        return (
            self.name,
            milliseconds(self.conv),
            milliseconds(self.folded),
            milliseconds(self.scconv),
            _times(self.faster),
            _times(self.faster_than_folded),
            _times(self.bound),
        )


def _backbone(depth: int, **options: int) -> Callable[[], Subject]:
    return partial(BackboneSubject, depth, {} if depth == 50 else PAPER, **options)


def _config(scconv: str, plain: str, **overrides: object) -> Callable[[], Subject]:
    folder = configs_folder()
    return partial(ConfigSubject, str(folder / f'{scconv}.py'), str(folder / f'{plain}.py'), overrides)


def rows() -> list[Row]:
    """Return all rows."""

    def setting(runner: str, dtype: str, mode: str, batch: int, *size: int) -> Setting:
        return Setting(runner, dtype, BEST, mode, batch, (size[0], size[-1]))

    r50, demo = _backbone(50), _backbone(18, base_channels=32, stem_channels=32)
    resnet56 = _config('cifar/scconv_resnet56_cifar10', 'cifar/resnet56_cifar10')
    resnet20 = _config('cifar/scconv_resnet56_cifar10', 'cifar/resnet56_cifar10', **{'model.backbone.depth': 20})
    detector = _config('retinanet_scconv_r50_coco', 'retinanet_r50_coco')
    everywhere = _config('retinanet_scconv_all_r50_coco', 'retinanet_r50_coco')
    found = [
        Row(f'R50, {dtype}, {runner}', r50, setting(runner, dtype, 'forward', 8, 224))
        for dtype in ('fp32', 'bf16')
        for runner in ('eager+deploy', 'compile+deploy', *(runtime + DEPLOY for runtime in RUNTIMES))
    ]
    for dtype in ('fp32', 'bf16'):
        found += [
            Row(f'R50, {dtype}, training', r50, setting('eager', dtype, 'train', 8, 224)),
            Row(f'ResNet-20 CIFAR, {dtype}, training', resnet20, setting('eager', dtype, 'train', 128, 32), False),
            Row(f'ResNet-56 CIFAR, {dtype}, training', resnet56, setting('eager', dtype, 'train', 128, 32), False),
            Row(f'demo backbone R18, {dtype}, training', demo, setting('eager', dtype, 'train', 16, 128)),
        ]
    found.append(
        Row('ResNet-56 CIFAR, fp32, eager+deploy', resnet56, setting('eager+deploy', 'fp32', 'forward', 64, 32), False)
    )
    for name, subject in (('RetinaNet-R50', detector), ('RetinaNet-R50 everywhere', everywhere)):
        found += [
            Row(
                f'{name}, fp32, eager+deploy', subject, setting('eager+deploy', 'fp32', 'forward', 1, 800, 1344), False
            ),
            Row(f'{name}, fp32, training', subject, setting('eager', 'fp32', 'train', 2, 320, 480), False),
        ]
    return [row for row in found if refusal(row.setting) is None]


def chosen(patterns: Sequence[str] | None) -> list[Row]:
    """Return the rows whose names match one of the globs; all for None.

    Raises:
        UserError: A glob matches none.
    """
    every = rows()
    for pattern in patterns or ():
        if not any(fnmatchcase(row.name, pattern) for row in every):
            raise UserError(f'--rows: none is like {pattern!r}; there are: {"; ".join(row.name for row in every)}')
    return [row for row in every if not patterns or any(fnmatchcase(row.name, pattern) for pattern in patterns)]


def measure_row(row: Row, rounds: int, warmup: int, device: torch.device) -> Result:
    """Measure conv, SCConv and, where there is a bound, no layer at all, in turns."""
    candidates = ('conv', 'scconv', *(('nothing',) if row.bound else ()))
    plan = Plan(candidates, rounds, warmup, 1, device)
    return result_of(row.name, measure(row.subject(), row.setting, plan, lambda *_: None))


def result_of(name: str, competitors: Sequence[Competitor]) -> Result:
    """Return the row of competitors, in the deploy form where they have one."""
    times = {c.name: c.times for c in competitors}
    form = DEPLOY if f'scconv{DEPLOY}' in times else ''
    conv, scconv = times['conv'], times[f'scconv{form}']
    folded, nothing = times.get(f'conv{DEPLOY}'), times.get(f'nothing{form}')
    return Result(
        name,
        Quartiles.of(conv).median,
        None if folded is None else Quartiles.of(folded).median,
        Quartiles.of(scconv).median,
        Quartiles.of(ratios(conv, scconv)),
        None if folded is None else Quartiles.of(ratios(folded, scconv)),
        None if nothing is None else Quartiles.of(ratios(conv, nothing)),
    )


def best_against_best(results: Iterable[Result], dtype: str) -> tuple[str, ...] | None:
    """Return the row of R50's fastest runtimes for inference; None if none was measured in ``dtype``."""
    found = [r for r in results if r.name.startswith(f'R50, {dtype}, ') and not r.name.endswith('training')]
    if not found:
        return None
    plain = min(min(r.conv, r.folded or r.conv) for r in found)
    ours = min(r.scconv for r in found)
    name = f'R50, {dtype}, best against best'
    return name, milliseconds(plain), '', milliseconds(ours), f'{plain / ours:.2f}', '', ''


def features() -> str:
    """Return the processor's instructions that decide about these rows, as far as torch can tell."""
    has: dict[str, object] = getattr(torch.cpu, 'get_capabilities', dict)()
    return ', '.join(name for name in FEATURES if has.get(name)) or 'none known'


def write(folder: Path, facts: Mapping[str, str], results: Sequence[Result], failures: Mapping[str, str]) -> str:
    """Write ``matrix.md`` and ``matrix.csv`` into ``folder``; return the table.

    Args:
        folder: Existing folder.
        facts: Label -> text, the environment.
        results: So far.
        failures: Row -> why it could not be measured.
    """
    table = Table(COLUMNS, [r.cells for r in results])
    table.rows += [row for dtype in ('fp32', 'bf16') if (row := best_against_best(results, dtype))]
    text = table.markdown() + ''.join(f'\nNot measured: {name}: {reason}\n' for name, reason in failures.items())
    head = '# Benchmark matrix\n\n' + ''.join(f'- {k}: {v}\n' for k, v in facts.items())
    with replacing(folder / 'matrix.md') as path:
        path.write_text(f'{head}\nMedians; ratios are taken round by round, with quartiles.\n\n{text}')
    with replacing(folder / 'matrix.csv') as path, path.open('w', newline='') as file:
        file.writelines(f'# {k}: {v}\n' for k, v in facts.items())
        csv.writer(file, lineterminator='\n').writerows([table.columns, *table.rows])
    return text


def _times(quartiles: Quartiles | None) -> str:
    return '' if quartiles is None else f'{quartiles.median:.2f} ({quartiles.first:.2f}-{quartiles.third:.2f})'
