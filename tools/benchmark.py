#!/usr/bin/env python
"""Measure time and memory of SCConv beside the convolution that it replaces, on random input.

Candidates take turns, after a check that each computes what the plain form
computes. Every round goes to OUT/<subject>.csv as it comes, medians and quartiles
to .md, the ratios to .png; files of an earlier run there are replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.engine.environment import check_environment
from mmscconv.engine.errors import UserError, run


def parse_args() -> argparse.Namespace:
    from mmengine.config import DictAction

    from mmscconv.benchmark.candidates import CANDIDATES
    from mmscconv.benchmark.engines import RUNNERS
    from mmscconv.benchmark.jobs import DTYPES, LAYOUTS, MODES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest='subject', required=True)
    layer = subjects.add_parser('layer', help='one 3x3 convolution')
    layer.add_argument('--channels', type=positive, default=256, help='in and out (default: %(default)s)')
    layer.add_argument('--stride', type=int, choices=(1, 2), default=1)
    layer.add_argument('--norm', action='store_true', help='with a BN behind, as in networks')
    backbone = subjects.add_parser('backbone', help='ResNet beside SCConvResNet')
    backbone.add_argument('--depth', type=int, choices=(18, 34, 50, 101, 152), default=50)
    for subject in (layer, backbone):
        subject.add_argument(
            '--scconv', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE', help="SCConv's settings"
        )

    for name, subject in subjects.choices.items():
        subject.add_argument(
            '--candidates', nargs='+', choices=CANDIDATES, default=['conv', 'scconv'], metavar='NAME',
            help=f'the baseline first, of {", ".join(CANDIDATES)} (default: conv scconv)',
        )  # fmt: skip
        subject.add_argument(
            '--runners', nargs='+', choices=RUNNERS, default=['eager'], metavar='NAME',
            help=f'of {", ".join(RUNNERS)} (default: eager)',
        )  # fmt: skip
        subject.add_argument('--modes', nargs='+', choices=MODES, default=['forward'], help='(default: forward)')
        subject.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['fp32'], help='but fp32 by autocast')
        subject.add_argument(
            '--memory-format', choices=(*LAYOUTS, 'best'), default='best',
            help='best: the faster one of each candidate, in trials before the rounds (default: %(default)s)',
        )  # fmt: skip
        subject.add_argument('--batches', nargs='+', type=positive, default=[8], metavar='N', help='(default: 8)')
        subject.add_argument(
            '--sizes', nargs='+', type=size, default=[(56, 56) if name == 'layer' else (224, 224)], metavar='HxW',
            help=f'of the input: 224 or 800x1344 (default: {56 if name == "layer" else 224})',
        )  # fmt: skip
        subject.add_argument('--rounds', type=positive, default=15, help='that count (default: %(default)s)')
        subject.add_argument('--warmup', type=positive, default=3, help='rounds before them (default: %(default)s)')
        subject.add_argument('--repeats', type=positive, default=1, help='calls per round; more for short ones')
        subject.add_argument('--threads', type=positive, help="of the CPU (default: PyTorch's choice)")
        subject.add_argument('--device', help='cpu, cuda or cuda:1 (default: cuda where there is one)')
        subject.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), metavar='DIR')
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

    if args.threads:
        torch.set_num_threads(args.threads)
    device = device_of(args.device)
    measure_candidates(args, device)


def device_of(name: str | None) -> Any:
    import torch

    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f'--device {name} cannot be used: {str(error).splitlines()[0]}') from error
    return device


def measure_candidates(args: argparse.Namespace, device: Any) -> None:
    """Measure layer, backbone or config, one setting after the other."""
    from mmscconv.benchmark import onnx
    from mmscconv.benchmark.candidates import CANDIDATES
    from mmscconv.benchmark.environment import environment
    from mmscconv.benchmark.reporting import Report
    from mmscconv.benchmark.session import Plan, measure, settings_of

    settings, left_out = settings_of(
        runner=args.runners, dtype=args.dtypes, memory_format=[args.memory_format], mode=args.modes,
        batch=args.batches, size=args.sizes,
    )  # fmt: skip
    if any(setting.runner.startswith('onnxruntime') for setting in settings):
        onnx.check_installed()
    if len(set(args.candidates)) < len(args.candidates):
        raise UserError(f'--candidates names one twice: {" ".join(args.candidates)}')
    subject = subject_of(args)
    plan = Plan(args.candidates, args.rounds, args.warmup, args.repeats, device)
    notes = [f'{name}: {CANDIDATES[name].description}.' for name in args.candidates]
    notes += [f'Left out: {line}.' for line in left_out]
    for line in left_out:
        print(f'left out: {line}')
    report = Report(args.out, args.subject, subject.title, environment(device), notes)
    for setting in settings:
        competitors = measure(
            subject, setting, plan, lambda found, number, setting=setting: report.add_round(setting, found, number)
        )
        print(report.add_setting(setting, competitors), flush=True)
    print(f'benchmark: {report.csv_file}, {report.markdown_file}, {report.plot_file}')


def subject_of(args: argparse.Namespace) -> Any:
    from mmscconv.benchmark.subjects import BackboneSubject, LayerSubject

    if args.subject == 'layer':
        return LayerSubject(args.channels, args.stride, args.norm, args.scconv)
    return BackboneSubject(args.depth, args.scconv)


if __name__ == '__main__':
    sys.exit(run(main))
