"""CSV, Markdown and plot of a benchmark, written while the benchmark runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmscconv.benchmark.jobs import Setting
from mmscconv.benchmark.profiling import profile_table
from mmscconv.benchmark.runners import DEPLOY
from mmscconv.benchmark.session import Competitor, Plan
from mmscconv.benchmark.timing import Quartiles, ratios
from mmscconv.errors import UserError
from mmscconv.storage.disk import replacing
from mmscconv.table import Table

COLUMNS = (
    'subject', 'runner', 'dtype', 'mode', 'batch', 'height', 'width', 'candidate', 'memory_format', 'round', 'seconds',
    'saved_bytes', 'peak_bytes',
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A competitor's results in one setting.

    Args:
        name, layout: Name and memory format of the competitor.
        time: Seconds.
        faster: Times faster than the baseline, the setting's first competitor; round by round.
        faster_than_folded: Times faster than the baseline in deploy form; None if that was not measured.
        saved, peak: Activation memory and peak device memory in bytes; None if not measured.
        saved_share: ``saved`` as a fraction of the baseline's.
    """

    name: str
    layout: str
    time: Quartiles
    faster: Quartiles
    faster_than_folded: Quartiles | None
    saved: int | None
    saved_share: float | None
    peak: int | None


def summarize(competitors: Sequence[Competitor]) -> list[Summary]:
    """Return each competitor's summary over all rounds; the first competitor is the baseline."""
    baseline = competitors[0]
    folded = next((c for c in competitors if c.name == baseline.name + DEPLOY), None)
    return [
        Summary(
            c.name,
            c.layout,
            Quartiles.of(c.times),
            Quartiles.of(ratios(baseline.times, c.times)),
            None if folded is None else Quartiles.of(ratios(folded.times, c.times)),
            c.saved,
            c.saved / baseline.saved if c.saved and baseline.saved else None,
            c.peak,
        )
        for c in competitors
    ]


class Report:
    """The three files of a run, ``<folder>/<name>.csv``, ``.md`` and ``.png``.

    An earlier run's files are replaced with the first round: a run that fails before has nothing to put there.

    Args:
        folder: Folder of the files, created if missing.
        name: Name of the subject.
        title: Heading of the report.
        facts: Labels and texts of the environment.
        notes: Paragraphs below ``facts``.

    Raises:
        UserError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, name: str, title: str, facts: Mapping[str, str], notes: Sequence[str]) -> None:
        self.csv_file, self.markdown_file, self.plot_file = (folder / f'{name}.{e}' for e in ('csv', 'md', 'png'))
        self.name = name
        self.head = f'# {title}\n\n' + ''.join(f'- {k}: {v}\n' for k, v in facts.items())
        self.head += ''.join(f'\n{note}\n' for note in notes)
        self.facts = facts
        self.tables: list[str] = []
        self.summaries: list[tuple[Setting, list[Summary]]] = []
        self._begun = False
        with self._errors_named():
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass

    def add_round(self, setting: Setting, competitors: Sequence[Competitor], number: int) -> None:
        """Append the times of a round to the CSV file."""
        if not self._begun:
            self._begin()
        shared = (self.name, setting.runner, setting.dtype, setting.mode, setting.batch, *setting.size)
        with self.csv_file.open('a', newline='') as file:
            csv.writer(file, lineterminator='\n').writerows(
                (*shared, c.name, c.layout, number, f'{c.times[number]:.9f}', c.saved, c.peak) for c in competitors
            )

    def add_setting(
        self,
        setting: Setting,
        competitors: Sequence[Competitor],
        heading: str | None = None,
        make_table: Callable[[Sequence[Summary]], Table] | None = None,
    ) -> str:
        """Add a finished setting to Markdown and plot; return its section.

        Args:
            setting: The setting that was measured.
            competitors: All competitors, with their times.
            heading: Heading of the section; None for the setting in words.
            make_table: Function that makes the table; None for :func:`setting_table`.
        """
        summaries = summarize(competitors)
        text = f'## {heading or setting}\n\n{(make_table or setting_table)(summaries).markdown()}'
        self.tables.append(text)
        self.summaries.append((setting, summaries))
        self._write_markdown()
        with replacing(self.plot_file) as path:
            plot(self.summaries).savefig(path, dpi=120)
        return text

    def add_profile(self, setting: Setting, competitors: Sequence[Competitor], runs: int, plan: Plan) -> str:
        """Profile each competitor over ``runs`` runs, add the operators to Markdown and return the new sections."""
        sections = [
            f'### {c.name}, {c.layout}: operators in {setting}\n\n{profile_table(c, runs, plan).markdown()}'
            for c in competitors
        ]
        self.tables += sections
        self._write_markdown()
        return '\n'.join(sections)

    def __str__(self) -> str:
        return ', '.join(str(f) for f in (self.csv_file, self.markdown_file, self.plot_file))

    def _begin(self) -> None:
        """Replace the files of an earlier run."""
        with self._errors_named():
            with self.csv_file.open('w', newline='') as file:
                file.writelines(f'# {k}: {v}\n' for k, v in self.facts.items())
                csv.writer(file, lineterminator='\n').writerow(COLUMNS)
            self.plot_file.unlink(missing_ok=True)
            self._write_markdown()
        self._begun = True

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f'cannot write to {self.csv_file.parent}: {error.strerror} (pass --out)') from error

    def _write_markdown(self) -> None:
        with replacing(self.markdown_file) as path:
            path.write_text('\n'.join([self.head, *self.tables]))


def setting_table(summaries: Sequence[Summary]) -> Table:
    """Return one line per competitor, without columns that are empty for all."""
    baseline = summaries[0].name
    columns = {
        'candidate': [s.name for s in summaries],
        'memory format': [s.layout for s in summaries],
        'median, ms': [milliseconds(s.time.median) for s in summaries],
        'quartiles, ms': [f'{milliseconds(s.time.first)} - {milliseconds(s.time.third)}' for s in summaries],
        f'times faster than {baseline}': [spread(s.faster) for s in summaries],
        f'times faster than {baseline}{DEPLOY}': [spread(s.faster_than_folded) for s in summaries],
        'saved activations, MB': [_mb(s.saved) for s in summaries],
        f'of those of {baseline}': [f'{s.saved_share:.3f}' if s.saved_share else '' for s in summaries],
        'peak device memory, MB': [_mb(s.peak) for s in summaries],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)))


def plot(results: Sequence[tuple[Setting, Sequence[Summary]]]) -> Any:
    """Return a figure: times faster than the baseline against batch and size, a panel for each other setting."""
    from matplotlib.figure import Figure

    panels: dict[str, list[tuple[Setting, Sequence[Summary]]]] = {}
    for setting, summaries in results:
        title = f'{setting.runner}, {setting.dtype}, {setting.memory_format}, {setting.mode}'
        panels.setdefault(title, []).append((setting, summaries))
    figure = Figure(figsize=(max(5, 4.5 * len(panels)), 4.5), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (title, content) in zip(axes, panels.items(), strict=True):
        shapes = [setting.shape for setting, _ in content]
        for number, summary in enumerate(content[0][1]):
            curve = [summaries[number].faster for _, summaries in content]
            errors = [[q.median - q.first for q in curve], [q.third - q.median for q in curve]]
            panel.errorbar(shapes, [q.median for q in curve], errors, label=summary.name, marker='o', capsize=3)
        panel.set(title=title, xlabel='batch x height x width', ylabel=f'times faster than {content[0][1][0].name}')
        panel.tick_params(axis='x', rotation=30)
        panel.grid(alpha=0.3)
        panel.legend()
    return figure


def milliseconds(seconds: float | None) -> str:
    """Return seconds as text in ms, '' for None."""
    return '' if seconds is None else f'{seconds * 1e3:.4g}'


def spread(quartiles: Quartiles | None) -> str:
    """Return median and quartiles as text."""
    return f'{quartiles.median:.3f} ({quartiles.first:.3f} - {quartiles.third:.3f})' if quartiles else ''


def _mb(size: int | None) -> str:
    return '' if size is None else f'{size / 1e6:.1f}'
