#!/usr/bin/env python
"""Measure time and memory of SCConv beside the convolution that it replaces, on random input.

Candidates take turns, after a check that each computes what the plain form
computes. Every round goes to OUT/<subject>.csv as it comes, medians and quartiles
to .md, the ratios to .png; the first round replaces files of an earlier run there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run
from mmscconv.foreign_errors import flat_message

if TYPE_CHECKING:
    from mmscconv.benchmark.session import Plan
    from mmscconv.benchmark.subjects import Subject


def parse_args() -> argparse.Namespace:
    from mmscconv.benchmark.candidates import CANDIDATES
    from mmscconv.benchmark.jobs import BEST, DTYPES, LAYOUTS, MODES
    from mmscconv.benchmark.runners import RUNNERS
    from mmscconv.engine.cli import ConfigOptions

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest='subject', required=True)
    layer = subjects.add_parser('layer', help='one 3x3 convolution')
    layer.add_argument('--stride', type=int, choices=(1, 2), default=1)
    layer.add_argument('--norm', action='store_true', help='with a BN behind, as in networks')
    backbone = subjects.add_parser('backbone', help='ResNet beside SCConvResNet')
    backbone.add_argument('--depth', type=int, choices=(18, 34, 50, 101, 152), default=50)
    config = subjects.add_parser('config', help="a config's model beside its twin's")
    config.add_argument('config', help='with SCConv, such as configs/retinanet_scconv_r50_coco.py')
    config.add_argument('twin', help='with plain convolutions, such as configs/retinanet_r50_coco.py')
    config.add_argument(
        '--beside', nargs='+', default=[], metavar='CONFIG', help='further configs that take turns, with any layers'
    )
    config.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='settings to override in all'
    )
    sru = subjects.add_parser('sru', help="SRU alone: bytes moved, and their share of a copy's bandwidth")
    matrix = subjects.add_parser('matrix', help='one table for a machine: backbones, narrow networks, detectors')
    matrix.add_argument(
        '--rows', nargs='+', metavar='GLOB', help="names such as 'R50, fp32*' (default: all, half an hour)"
    )
    for command in (layer, sru):
        command.add_argument('--channels', type=positive, default=256, help='(default: %(default)s)')
    for command in (layer, backbone):
        command.add_argument(
            '--scconv', nargs='+', action=ConfigOptions, default={}, metavar='KEY=VALUE', help="SCConv's settings"
        )
    for command in (layer, backbone, config):
        names = ', '.join(CANDIDATES)
        command.add_argument(
            '--candidates', nargs='+', choices=CANDIDATES, default=['conv', 'scconv'], metavar='NAME',
            help=f'the baseline first, of {names} (default: conv scconv)',
        )  # fmt: skip
        command.add_argument(
            '--runners', nargs='+', choices=RUNNERS, default=['eager'], metavar='NAME',
            help=f'of {", ".join(RUNNERS)} (default: eager)',
        )  # fmt: skip
        command.add_argument('--modes', nargs='+', choices=MODES, default=['forward'], help='(default: forward)')
        command.add_argument(
            '--profile', type=positive, metavar='N', help='after the rounds, list the operators of N more runs of each'
        )

    for name, command in subjects.choices.items():
        if name == 'matrix':
            continue
        alone = name == 'sru'
        formats = tuple(LAYOUTS) if alone else (*LAYOUTS, BEST)
        command.add_argument(
            '--memory-formats', nargs='+', choices=formats, default=list(formats) if alone else [BEST],
            help="best picks each candidate's faster format in trial rounds (not for sru)",
        )  # fmt: skip
        command.add_argument(
            '--dtypes', nargs='+', choices=DTYPES, default=['fp32'],
            help='fp32, or autocast to this dtype; with sru: the dtype of the input (default: fp32)',
        )  # fmt: skip
        side = 56 if name in ('layer', 'sru') else 224
        command.add_argument('--batches', nargs='+', type=positive, default=[8], metavar='N', help='(default: 8)')
        command.add_argument(
            '--sizes', nargs='+', type=size, default=[(side, side)], metavar='HxW',
            help=f'of the input, such as 224 or 800x1344 (default: {side})',
        )  # fmt: skip
        command.add_argument(
            '--repeats', type=positive, default=1, help='calls in a row, timed together (default: %(default)s)'
        )
    for command in subjects.choices.values():
        command.add_argument('--rounds', type=positive, default=15, help='measured rounds (default: %(default)s)')
        command.add_argument(
            '--warmup', type=positive, default=3, help='unmeasured rounds before them (default: %(default)s)'
        )
        command.add_argument('--threads', type=positive, help="of the CPU (default: PyTorch's choice)")
        command.add_argument('--device', help='cpu, cuda or cuda:1 (default: cuda where there is one)')
        command.add_argument(
            '--out', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR', help='(default: %(default)s)'
        )
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be positive, got {text}')
    return value


def size(text: str) -> tuple[int, int]:
    """Return (H, W) of '224' or '800x1344'."""
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    if not found or not (height := int(found[1])) or not (width := int(found[2] or height)):
        raise argparse.ArgumentTypeError(f'must be a size such as 224 or 800x1344, got {text}')
    return height, width


def main() -> None:
    check_environment()
    args = parse_args()
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    torch.backends.cudnn.benchmark = True  # shapes are fixed: each convolution gets its fastest algorithm
    try:
        {'matrix': measure_matrix, 'sru': measure_sru}.get(args.subject, measure_candidates)(args)
    finally:
        torch.set_num_threads(threads)


def plan_of(args: argparse.Namespace, further: Sequence[str] = ()) -> Plan:
    from mmscconv.benchmark.machine import device_to_measure
    from mmscconv.benchmark.session import Plan

    candidates = getattr(args, 'candidates', [])
    if len(set(candidates)) < len(candidates):
        raise UserError(f'--candidates names one twice: {" ".join(candidates)}')
    return Plan([*candidates, *further], args.rounds, args.warmup, args.repeats, device_to_measure(args.device))


def measure_candidates(args: argparse.Namespace) -> None:
    """Measure layer, backbone or config, one setting after the other."""
    from mmscconv.benchmark.machine import environment
    from mmscconv.benchmark.reporting import Report
    from mmscconv.benchmark.runners import check_packages, runtime_of
    from mmscconv.benchmark.session import measure, settings_of

    subject = subject_of(args)
    plan = plan_of(args, list(subject.further))
    settings, left_out = settings_of(
        runner=args.runners, dtype=args.dtypes, memory_format=args.memory_formats, mode=args.modes,
        batch=args.batches, size=args.sizes,
    )  # fmt: skip
    check_packages(setting.runner for setting in settings)
    unseen = [setting.runner for setting in settings if runtime_of(setting.runner) is not None]
    if args.profile and unseen:
        raise UserError(f"--profile sees PyTorch's operators, not those of the runner {unseen[0]}: leave one out")
    for line in left_out:
        print(f'left out: {line}')
    notes = [f'{name}: {subject.candidate(name).description}.' for name in plan.candidates]
    notes += [f'Left out: {line}.' for line in left_out]
    report = Report(args.out, subject.name, subject.title, environment(plan.device), notes)
    for setting in settings:
        competitors = measure(
            subject, setting, plan, lambda found, number, setting=setting: report.add_round(setting, found, number)
        )
        print(report.add_setting(setting, competitors), flush=True)
        if args.profile:
            print(report.add_profile(setting, competitors, args.profile, plan), flush=True)
    print(f'benchmark: {report}')


def subject_of(args: argparse.Namespace) -> Subject:
    from mmscconv.benchmark.config_subject import ConfigSubject
    from mmscconv.benchmark.subjects import BackboneSubject, LayerSubject

    if args.subject == 'layer':
        return LayerSubject(args.channels, args.stride, args.norm, args.scconv)
    if args.subject == 'backbone':
        return BackboneSubject(args.depth, args.scconv)
    return ConfigSubject(args.config, args.twin, args.cfg_options, args.beside)


def measure_sru(args: argparse.Namespace) -> None:
    """Measure SRU alone beside a copy."""
    from mmscconv.benchmark import roofline
    from mmscconv.benchmark.machine import environment
    from mmscconv.benchmark.reporting import Report
    from mmscconv.benchmark.session import settings_of

    plan = plan_of(args)
    settings, _ = settings_of(
        runner=['eager'], dtype=args.dtypes, memory_format=args.memory_formats, mode=['train'],
        batch=args.batches, size=args.sizes,
    )  # fmt: skip
    title, notes = f'SRU, {args.channels} channels', [' '.join(roofline.COUNTING.split())]
    report = Report(args.out, args.subject, title, environment(plan.device), notes)
    for setting in settings:
        competitors = roofline.measure(
            args.channels, setting, plan, lambda found, n, setting=setting: report.add_round(setting, found, n)
        )
        heading = f'{setting.dtype}, {setting.memory_format}, {setting.shape}'
        table = roofline.table_of(setting, args.channels)
        print(report.add_setting(setting, competitors, heading, table), flush=True)
    print(f'benchmark: {report}')


def measure_matrix(args: argparse.Namespace) -> None:
    """Measure row after row; a row that fails is named in the table, and the others go on."""
    from mmscconv.benchmark import matrix
    from mmscconv.benchmark.machine import device_to_measure, environment
    from mmscconv.benchmark.runners import check_packages

    rows, device = matrix.chosen(args.rows), device_to_measure(args.device)
    check_packages(row.setting.runner for row in rows)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write to {args.out}: {error.strerror} (pass --out)') from error
    facts = {**environment(device), 'instructions': matrix.features()}
    results, failures = [], {}
    for row in rows:
        try:
            results.append(matrix.measure_row(row, args.rounds, args.warmup, device))
        except (UserError, MemoryError, RuntimeError) as error:
            failures[row.name] = flat_message(error)
        print(
            ' | '.join(results[-1].cells) if row.name not in failures else f'{row.name}: {failures[row.name]}',
            flush=True,
        )
        text = matrix.write(args.out, facts, results, failures)
    print(text)
    print(f'benchmark: {args.out / "matrix.md"}, {args.out / "matrix.csv"}')


if __name__ == '__main__':
    sys.exit(run(main))
