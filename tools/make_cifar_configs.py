#!/usr/bin/env python
"""Write configs/cifar/*.py: the rows of Tables 1 and 2 and the points of Figure 4, each a short delta.

The shared parts are in configs/cifar/_base_. With --check nothing is written: the
exit status is 0 if the folder is what this tool makes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.errors import UserError, run

ROOT = Path(__file__).resolve().parents[1]

# Name, display name, the rivals (Table 2's, and OctConv everywhere), and SCConv's settings for the printed counts.
ARCHITECTURES = {
    'resnet56': ('ResNet-56', ('octconv', 'spconv', 'ghostconv', 'slimconv', 'tiedconv'), "low_squeeze='output', "),
    'resnet50': (
        'ResNet-50',
        ('octconv', 'ghostconv', 'slimconv_k4-3', 'spconv', 'slimconv', 'tiedconv'),
        '',
    ),
    'resnext29': ('ResNeXt-29', ('octconv', 'ghostconv', 'spconv', 'slimconv_k4-3', 'tiedconv'), ''),
    'wrn28': ('WideResNet-28-10', ('octconv', 'ghostconv', 'spconv', 'slimconv', 'tiedconv'), ''),
    'densenet121': (
        'DenseNet-121',
        ('octconv', 'ghostconv', 'spconv', 'slimconv', 'tiedconv'),
        "low_squeeze='output', ",
    ),
}
RIVALS = {
    'octconv': ('OctConv, alpha = 1/2', "type='OctConv', alpha=1 / 2"),
    'spconv': ('SPConv, alpha = 1/2', "type='SPConv', alpha=1 / 2"),
    'ghostconv': ('GhostConv, s = 2', "type='GhostConv', ratio=2"),
    'slimconv': ('SlimConv, k = 1', "type='SlimConv', k=1"),
    'slimconv_k4-3': ('SlimConv, k = 4/3', "type='SlimConv', k=4 / 3"),
    'tiedconv': ('TiedConv, B = 2', "type='TiedConv', blocks=2"),
}
# Table 1: file name, title, SCConv's arrangement.
ARRANGEMENTS = (
    ('sru', 'SRU alone, in front of the plain 3x3', 'S'),
    ('cru', 'CRU alone', 'C'),
    ('sru-parallel-cru', 'SRU and CRU in parallel', 'C&S'),
    ('cru-sru', 'CRU, then SRU', 'C+S'),
    ('sru-cru', 'SRU, then CRU, which is SCConv', 'S+C'),
)
DATASETS = {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100', 'cifar10_folder': 'CIFAR-10 as image files'}


def plain(architecture: str, dataset: str) -> str:
    head = '\nmodel = dict(head=dict(num_classes=100))\n' if dataset == 'cifar100' else ''
    return (
        f'"""Baseline of Table 2: {ARCHITECTURES[architecture][0]} on {DATASETS[dataset]}."""\n\n'
        f"_base_ = ['./_base_/models/{architecture}.py', './_base_/{dataset}.py']\n{head}"
    )


def delta(title: str, base: str, backbone: str) -> str:
    return f'"""{title}."""\n\n_base_ = \'./{base}.py\'\n\nmodel = dict(backbone=dict({backbone}))\n'


def conv(settings: str) -> str:
    return f'conv_cfg=dict({settings})'


def rival(method: str, architecture: str) -> str:
    """Return the backbone's settings for a row of Table 2."""
    if (method, architecture) == ('octconv', 'resnet50'):
        return "type='CIFAROctResNet', alpha=1 / 2"  # the printed counts need octaves in every convolution
    settings = RIVALS[method][1]
    if (method, architecture) == ('tiedconv', 'densenet121'):
        settings += ', bias=True'  # as the printed 695.68 M requires
    return conv(settings)


def configs() -> dict[str, str]:
    """Return every file's name and text."""
    files = {}
    for architecture, (name, methods, low) in ARCHITECTURES.items():
        for dataset, dataset_name in DATASETS.items():
            base = f'{architecture}_{dataset}'
            files[base] = plain(architecture, dataset)
            settings = conv(f"type='SCConv', {low}inner_norm=True")
            files[f'scconv_{base}'] = delta(f'SCConv in {name} on {dataset_name}', base, settings)
            # Image files are for small machines: their rivals come with the smallest network alone.
            if dataset != 'cifar10_folder' or architecture == 'resnet56':
                for method in methods:
                    title = f'{RIVALS[method][0]}, in {name} on {dataset_name}'
                    files[f'{method}_{base}'] = delta(title, base, rival(method, architecture))
    base = 'resnet50_cifar100'
    for file, title, arrangement in ARRANGEMENTS:
        settings = conv(f"type='SCConv', arrangement='{arrangement}', low_squeeze='output', inner_norm=True")
        files[f'{file}_{base}'] = delta(f'Table 1: {title}; ResNet-50 on CIFAR-100', base, settings)
    for eighths in (1, 2, 3, 5, 6, 7):  # 4/8 is scconv_resnet50_cifar100
        settings = conv(f"type='SCConv', alpha={eighths} / 8, inner_norm=True")
        title = f'Figure 4: SCConv with alpha = {eighths}/8 in ResNet-50 on CIFAR-100'
        files[f'scconv_alpha{eighths}-8_{base}'] = delta(title, base, settings)
    return {f'{name}.py': text for name, text in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare only')
    parser.add_argument('--out', type=Path, default=ROOT / 'configs' / 'cifar', help='folder to write')
    args = parser.parse_args()
    wanted = configs()
    existing = {path.name: path.read_text() for path in args.out.glob('*.py')}
    wrong = sorted(name for name in wanted.keys() | existing.keys() if wanted.get(name) != existing.get(name))
    if args.check:
        if wrong:
            raise UserError(f'not what {Path(__file__).name} makes: {", ".join(wrong)}; run it without --check')
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for name in wrong:
        if name in wanted:
            (args.out / name).write_text(wanted[name])
        else:
            (args.out / name).unlink()
    print(f'{len(wanted)} configs in {args.out}, {len(wrong)} changed')


if __name__ == '__main__':
    sys.exit(run(main))
