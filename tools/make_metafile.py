#!/usr/bin/env python
"""Write configs/metafile.yml, OpenMMLab's list of models: each config with its parameters and operations.

Whole models are counted, detectors with neck and head. FLOPs are multiply-adds of
convolutions and linear layers for one image of "Input Size" (HxW): mmpretrain's
metafiles count one multiply-add as one, too. With --check nothing is written: the
exit status is 0 if the file is what this tool makes. Two minutes for all configs.
"""

import argparse
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv import __version__, get_config, list_configs
from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run

METAFILE = Path(__file__).resolve().parents[1] / 'configs' / 'metafile.yml'
RESULTS = METAFILE.parents[1] / 'weights' / 'results.yml'  # of the configs with weights, in the metafile's form
HEADER = (
    '# Made by tools/make_metafile.py, which says what is counted. '
    'No model has been trained on all of COCO, VOC or ImageNet.\n'
)
DATA = {
    'coco': 'COCO',
    'voc': 'PASCAL VOC 2007 + 2012',
    'imagenet': 'ImageNet-1k',
    'cifar10': 'CIFAR-10',
    'cifar100': 'CIFAR-100',
    'folder': 'CIFAR-10',
    'cells': 'BCCD blood cells',
    'digits': 'Digits (tools/make_digits.py)',
}
OURS = ('scconv', 'sru', 'cru')
COLLECTIONS = [
    {
        'Name': 'SCConv',
        'Metadata': {'Architecture': ['SCConv', 'SRU', 'CRU']},
        'Paper': {
            'Title': 'SCConv: Spatial and Channel Reconstruction Convolution for Feature Redundancy',
            'URL': 'https://openaccess.thecvf.com/content/CVPR2023/html/Li_SCConv_Spatial_and_Channel_Reconstruction_'
            'Convolution_for_Feature_Redundancy_CVPR_2023_paper.html',
        },
        'README': 'README.md',
        'Code': {'Version': f'v{__version__}'},
    },
    {
        'Name': 'SCConv baselines',
        'Metadata': {'Architecture': ['ResNet', 'ResNeXt', 'WideResNet', 'DenseNet']},
        'README': 'README.md',
        'Code': {'Version': f'v{__version__}'},
    },
]


def entry(name: str, counted: dict) -> dict:
    """Return the metafile's entry of a config; ``counted`` caches the counts of equal models."""
    from mmengine.registry import MODELS, init_default_scope

    from mmscconv.complexity import count, counted_shape

    cfg = get_config(name)
    shape = counted_shape(cfg)
    key = (repr(cfg.model), shape)
    if key not in counted:
        init_default_scope(cfg.default_scope)
        counted[key] = count(MODELS.build(cfg.model), shape)
    words = Path(name).name.replace('-', '_').split('_')
    length = {'Epochs': cfg.train_cfg.max_epochs} if 'max_epochs' in cfg.train_cfg else {}
    length = length or {'Iterations': cfg.train_cfg.max_iters}
    trained = yaml.safe_load(RESULTS.read_text())
    return {
        'Name': Path(name).name,
        'In Collection': 'SCConv' if set(words) & set(OURS) or words[0].startswith(OURS) else 'SCConv baselines',
        'Config': f'configs/{name}.py',
        'Metadata': {
            'Training Data': DATA[words[-1]],
            **length,
            'Batch Size': cfg.train_dataloader.batch_size,
            'Input Size': f'{shape[0]}x{shape[1]}',
            'FLOPs': counted[key].macs,
            'Parameters': counted[key].params,
        },
        **trained.get(Path(name).name, {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='compare only')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='with --check: count these configs alone')
    args = parser.parse_args()
    if args.only and not args.check:
        parser.error('--only goes with --check: the file holds every config')
    check_environment()
    import mmscconv.models  # noqa: F401, registers the layers also for configs that do not import them

    counted = {}
    models = [entry(name, counted) for name in args.only or list_configs()]
    if not args.check:
        content = {'Collections': COLLECTIONS, 'Models': models}
        METAFILE.write_text(HEADER + yaml.safe_dump(content, sort_keys=False, width=120))
        print(f'{len(models)} configs in {METAFILE}')
        return
    existing = yaml.safe_load(METAFILE.read_text())
    wrong = {model['Name'] for model in models if model not in existing['Models']}
    if not args.only:
        wrong |= {model['Name'] for model in existing['Models'] if model not in models}
    if wrong or existing['Collections'] != COLLECTIONS:
        names = ', '.join(sorted(wrong)) or 'the collections'
        raise UserError(f'{METAFILE} is not what {Path(__file__).name} makes: {names}; run it without --check')


if __name__ == '__main__':
    sys.exit(run(main))
