"""Parameters, multiply-adds and schedules in the README and in docs/configs.md are those of configs/metafile.yml."""

import re
from pathlib import Path

import pytest
import yaml

from helpers.paths import ROOT

# Words of a config's name that its plain twin has, too.
PLAIN = re.compile(r'retinanet|resnet\d*|r\d+|coco|voc|imagenet|digits|cifar\d+')
UNITS = {'Parameters': ('parameters, M', 1e6), 'FLOPs': ('multiply-adds, G', 1e9)}


def models():
    content = yaml.safe_load((ROOT / 'configs' / 'metafile.yml').read_text())
    return {model['Name']: model['Metadata'] for model in content['Models']}


def tables(page):
    """Yield each row of the page's tables of configs: (names, column -> text)."""
    columns = None
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('|').split(' | ')] if line.startswith('|') else []
        if cells[:1] == ['config']:
            columns = cells
        elif not cells:
            columns = None
        elif columns and not set(line) <= set('|-'):
            assert len(cells) == len(columns), line
            row = dict(zip(columns, cells, strict=True))
            yield [Path(name).name for name in re.findall('`(.+?)`', row['config'])], row


def twin(name):
    return '_'.join(word for word in name.split('_') if PLAIN.fullmatch(word))


@pytest.mark.parametrize(('page', 'configs'), [('README.md', 4), ('docs/configs.md', 10 + 13)])
def test_the_tables_of_configs_are_those_of_the_metafile(page, configs):
    known, seen = models(), []
    for names, row in tables(page):
        seen += names
        for key, (column, unit) in UNITS.items():
            ours, plain = re.match(r'(.+) \((.+?)\)', row[column]).groups()
            assert ours.split(', ') == [f'{known[name][key] / unit:.2f}' for name in names], (names, column)
            assert {plain} == {f'{known[twin(name)][key] / unit:.2f}' for name in names}, (names, column)
        sizes = {f'{h}x{w}' for h, w in re.findall(r'(\d+)\xd7(\d+)', row.get('size', row['multiply-adds, G']))}
        assert not sizes or sizes == {known[name]['Input Size'] for name in names}, names
        schedule = row.get('schedule', row.get('data and schedule', ''))
        for pattern, key, factor in (
            (r'(\d+)k iterations', 'Iterations', 1000),
            (r'(\d+) epochs', 'Epochs', 1),
            (r'batch (\d+)', 'Batch Size', 1),
        ):
            for number in re.findall(pattern, schedule):
                assert {int(number) * factor} == {known[name][key] for name in names}, (names, key)
    assert len(seen) == len(set(seen)) == configs
