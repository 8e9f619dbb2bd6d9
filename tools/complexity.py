#!/usr/bin/env python
"""Count parameters and operations of configs, or of every row of the paper's Tables 1-5.

No data set is needed. Classifiers are counted at the size to which their pipelines bring
images, detectors at 768 x 1024 with backbone, neck and head apart; ``input_shape`` in a
config, or ``--shape``, goes before both. The paper's Tables 4 and 5 are explained by the
backbone alone (``--backbone``; ``--paper`` counts so).
"Paper's rule" is the counting that reproduces the printed FLOPs, with BN, biases and
average pooling and without GN; mmscconv/complexity/counting.py states it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run
from mmscconv.storage.disk import replacing

PAPER_NOTE = (
    "Tables 4 and 5 print an ImageNet classifier's parameters beside a backbone's FLOPs; "
    'the errors compare each with its like. Rows of Tables 1 and 2 are counted with 10 or 100 classes, whichever gives '
    'the printed number (`classes` in mmscconv/paper/tables.yaml), not always the number of the config: `--classes` '
    'repeats such a row.'
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', metavar='config', help='config files')
    parser.add_argument(
        '--paper', action='store_true', help="every row of the paper's tables, with the printed numbers"
    )
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help='image size in place of the usual one')
    parser.add_argument('--classes', type=int, help="classes of the head, in place of the config's")
    parser.add_argument(
        '--backbone', action='store_true', help='count the backbone of a detector alone, as the paper does'
    )
    parser.add_argument('--per-stage', action='store_true', help='add a line for each part of the network')
    parser.add_argument('--out', type=Path, metavar='FILE', help='also write to this .md or .csv file')
    args = parser.parse_args()
    if args.paper == bool(args.configs):
        parser.error('name configs, or pass --paper alone')
    if args.paper and (args.shape or args.classes or args.per_stage or args.backbone):
        parser.error('--paper counts each row as the paper does: no --shape, --classes, --backbone or --per-stage')
    return args


def main() -> None:
    args = parse_args()
    if args.out and args.out.suffix not in ('.md', '.csv'):
        raise UserError(f'--out must end in .md or .csv, got {args.out}')
    if args.shape and min(args.shape) < 1:
        raise UserError(f'--shape must be positive, got {args.shape[0]} {args.shape[1]}')
    if args.classes is not None and args.classes < 1:
        raise UserError(f'--classes must be positive, got {args.classes}')
    check_environment()

    import mmscconv.models  # noqa: F401, registers the layers also for configs that do not name it
    from mmscconv.complexity import config_table, count_config, counted_shape
    from mmscconv.configuration import read_config
    from mmscconv.paper.comparison import compare
    from mmscconv.paper.report import paper_table, unexplained
    from mmscconv.paper.tables import paper_rows

    notes = ''
    if args.paper:
        rows = paper_rows()
        table = paper_table((row, compare(row)) for row in rows)
        notes = f'\n{PAPER_NOTE}\n\nRows that differ, and what is known about each:\n\n{unexplained(rows)}'
    else:
        results = []
        for config in args.configs:
            cfg = read_config(config)
            shape = tuple(args.shape or counted_shape(cfg))
            results.append((config, shape, count_config(cfg, args.classes, shape, args.backbone)))
        table = config_table(results, args.per_stage)

    text = table.markdown() + notes
    print(text, end='')
    if args.out:
        if args.out.suffix == '.csv':
            text = table.csv()
        else:
            text = f'# Complexity\n\n    python tools/complexity.py {" ".join(sys.argv[1:])}\n\n{text}'
        try:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(args.out) as path:
                path.write_text(text)
        except OSError as error:
            raise UserError(f'cannot write {args.out}: {error.strerror}') from error


if __name__ == '__main__':
    sys.exit(run(main))
