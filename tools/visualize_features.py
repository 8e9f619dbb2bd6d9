#!/usr/bin/env python
"""Figure 5: feature maps of two models side by side, with SRU's gate and the redundancy of the channels.

Writes features.png and statistics.png, and prints the numbers of statistics.png.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.checks.image_files import truncation
from mmscconv.errors import UserError, run, warn
from mmscconv.storage.disk import replacing

RANDOM = 'random'
COLOURS = ('tab:blue', 'tab:red')


@dataclass
class Measured:
    """One model's stages, redundancies and gates on the image."""

    title: str
    stages: dict[str, Any]
    redundancy: dict[str, float]
    gates: dict[str, float]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='image file')
    parser.add_argument('configs', nargs=2, metavar='CONFIG', help='two configs of classifiers or detectors')
    parser.add_argument(
        '--checkpoints',
        nargs=2,
        default=[RANDOM, RANDOM],
        metavar='FILE',
        help=f'checkpoint of each; {RANDOM!r} for random weights, the default',
    )
    parser.add_argument('--names', nargs=2, metavar='NAME', help='titles (default: the names of the configs)')
    parser.add_argument('--stage', type=int, default=1, help='stage of the feature maps, from 1 (default: %(default)s)')
    parser.add_argument('--channels', type=int, default=64, help='feature maps to show (default: %(default)s)')
    parser.add_argument('--size', type=int, default=224, help='shorter side of the input (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of random weights (default: %(default)s)')
    parser.add_argument('--trusted', action='store_true', help='load checkpoints that hold other objects than weights')
    parser.add_argument('--out-dir', default='features', help='folder for the images (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()
    if min(args.stage, args.channels, args.size) < 1:
        raise UserError('--stage, --channels and --size must be positive')
    image = read_image(args.image, args.size)
    names = args.names or [Path(config).stem for config in args.configs]
    sources = zip(names, args.configs, args.checkpoints, strict=True)
    models = [measure(image, *source, args.seed, args.trusted) for source in sources]
    for model in models:
        if args.stage > len(model.stages):
            raise UserError(f'--stage {args.stage}: {model.title} has the stages {", ".join(model.stages)}')
    out = Path(args.out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / 'features.png') as path:
            draw_features(image, models, args.stage, args.channels).savefig(path, dpi=110)
        with replacing(out / 'statistics.png') as path:
            draw_statistics(models).savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f'cannot write to {out}: {error.strerror}') from error
    for model in models:
        print(f'{model.title}\n  redundancy: {numbers(model.redundancy)}')
        if model.gates:
            print(f'  informative: {numbers(model.gates)}')
    print(f'images: {out}/features.png {out}/statistics.png')


def numbers(values: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.3f}' for name, value in values.items())


def read_image(path: str, size: int) -> Any:
    """Return the image as uint8 (H, W, 3) in BGR, its shorter side ``size``."""
    import cv2

    image = cv2.imread(path)
    problem = truncation(path)
    if image is None or problem:
        raise UserError(f'cannot read an image from {path}{f": {problem}" if problem else ""}')
    scale = size / min(image.shape[:2])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def measure(image: Any, name: str, config: str, checkpoint: str, seed: int, trusted: bool) -> Measured:
    """Run one model's backbone on the image."""
    import torch

    from mmscconv.configuration import holds_rgb, read_config
    from mmscconv.foreign_errors import explained
    from mmscconv.paper.measures import channel_redundancy, record_gate_shares, record_outputs

    cfg = read_config(config)
    model = build(cfg, checkpoint, seed, trusted)
    stages = stages_of(model.backbone, config)
    if holds_rgb(cfg):
        image = image[..., ::-1].copy()
    pixels = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    with torch.no_grad(), record_gate_shares(model.backbone) as gates, record_outputs(stages) as outputs:
        inputs = model.data_preprocessor({'inputs': [pixels], 'data_samples': None})['inputs']
        with explained(f'config {config}'):
            model.backbone(inputs)
    weights = 'random weights' if checkpoint == RANDOM else Path(checkpoint).name
    redundancy = {stage: channel_redundancy(output) for stage, output in outputs.items()}
    return Measured(f'{name} ({weights})', outputs, redundancy, gates)


def build(cfg: Any, checkpoint: str, seed: int, trusted: bool) -> Any:
    """Build the config's model in eval mode, with the checkpoint's weights in its backbone."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    from mmscconv.configuration import model_of
    from mmscconv.foreign_errors import explained
    from mmscconv.storage.checkpoint_match import differing_settings
    from mmscconv.storage.checkpoints import load_checkpoint, unwrapped, weights_of

    torch.manual_seed(seed)
    with explained(f'config {cfg.filename}'):
        if 'model' not in cfg:
            raise ValueError('it has no model')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
            import_scope(cfg.get('default_scope', 'mmdet'))
            model = MODELS.build(model_of(cfg)).eval()
        if not hasattr(model, 'backbone') or not hasattr(model, 'data_preprocessor'):
            raise ValueError(f'a {type(model).__name__} has no backbone and data_preprocessor')
    if checkpoint != RANDOM:
        content = load_checkpoint(checkpoint, trusted)
        fill(model.backbone, unwrapped(weights_of(content, checkpoint)), checkpoint)
        differing = differing_settings(content, cfg)
        if differing:
            warn(f'{checkpoint} was trained with other settings of the model: {differing}')
    return model


def import_scope(scope: str) -> None:
    """Register all modules of the scope's package."""
    import importlib

    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)


def fill(backbone: Any, state: dict[str, Any], checkpoint: str) -> None:
    """Load the backbone's part of a model's checkpoint, or a checkpoint of a backbone alone."""
    from mmscconv.storage.checkpoint_match import left_over

    prefix = 'backbone.' if any(key.startswith('backbone.') for key in state) else ''
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    try:
        missing = backbone.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:  # weights of another shape
        raise UserError(f'{checkpoint} does not fit the backbone: {str(error).splitlines()[1].strip()}') from error
    if missing:
        raise UserError(f'{checkpoint} does not fill the backbone: {len(missing)} keys missing, first {missing[0]}')
    further = left_over(backbone, {'state_dict': state})  # a head beside a backbone's own weights is none of them
    if further:
        raise UserError(f'{checkpoint} is of another backbone: {len(further)} further weights, first {further[0]}')


def stages_of(backbone: Any, config: str) -> dict[str, Any]:
    """Return the backbone's stages by name, as OpenMMLab's backbones list them."""
    for attribute in ('res_layers', 'layers'):
        names = getattr(backbone, attribute, None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return {name: getattr(backbone, name) for name in names}
    if hasattr(backbone, 'stages'):
        return {f'stage{i}': stage for i, stage in enumerate(backbone.stages, 1)}
    raise UserError(f'{config}: no list of stages (res_layers, layers or stages) in a {type(backbone).__name__}')


def draw_features(image: Any, models: list[Measured], stage: int, channels: int) -> Any:
    """Draw the input, and a mosaic of the chosen stage's feature maps for each model."""
    from matplotlib import pyplot

    # The mosaics are 6.5 inches wide and have the image's aspect ratio, with room for two lines of title.
    height = 6.5 * image.shape[0] / image.shape[1] + 0.8
    figure, axes = pyplot.subplots(1, 3, figsize=(17, height), width_ratios=(0.6, 1, 1), layout='constrained')
    axes[0].imshow(image[..., ::-1])
    axes[0].set_title('input')
    for panel, model in zip(axes[1:], models, strict=True):
        name, output = list(model.stages.items())[stage - 1]
        shown = min(channels, output.shape[1])
        panel.imshow(mosaic(output[0, :shown]), cmap='viridis', interpolation='nearest')
        panel.set_title(f'{model.title}\n{name}: channels 1 to {shown} of {output.shape[1]}, each scaled to its range')
    for panel in axes:
        panel.set_axis_off()
    return figure


def mosaic(maps: Any) -> Any:
    """Return (C, H, W) maps as one masked array, each scaled to [0, 1], with masked gaps between them."""
    import numpy as np

    count, height, width = maps.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = max(1, width // 20)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, plane in enumerate(maps.numpy()):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        span = np.ptp(plane)
        canvas[top : top + height, left : left + width] = (plane - plane.min()) / (span or 1)
    return np.ma.masked_invalid(canvas)


def draw_statistics(models: list[Measured]) -> Any:
    """Draw the redundancy of each stage, and the gate of each SRU of models with SRUs."""
    from matplotlib import pyplot

    gated = [(model, colour) for model, colour in zip(models, COLOURS, strict=True) if model.gates]
    bars = max((len(model.gates) for model, _ in gated), default=0)
    figure, axes = pyplot.subplots(
        1,
        1 + len(gated),
        figsize=(6 + 5 * len(gated), max(4.5, 0.26 * bars + 1.5)),
        layout='constrained',
        squeeze=False,
    )
    redundancy = axes[0, 0]
    longest = max((model.redundancy for model in models), key=len)
    for i, (model, colour) in enumerate(zip(models, COLOURS, strict=True)):
        positions = [j + 0.4 * (i - 0.5) for j in range(len(model.redundancy))]
        drawn = redundancy.bar(positions, model.redundancy.values(), 0.38, color=colour, label=model.title)
        redundancy.bar_label(drawn, fmt='%.2f', fontsize=9)
    redundancy.set_xticks(range(len(longest)), longest)
    redundancy.set(title='redundancy of each stage', ylabel='mean |correlation| of two channels')
    redundancy.margins(y=0.3)
    redundancy.legend(loc='upper left')
    for panel, (model, colour) in zip(axes[0, 1:], gated, strict=True):
        names = [name.removesuffix('.sru') for name in model.gates]
        drawn = panel.barh(names, model.gates.values(), color=colour)
        panel.bar_label(drawn, fmt='%.2f', fontsize=8, padding=2)
        panel.invert_yaxis()
        panel.tick_params(axis='y', labelsize=8)
        panel.set(xlim=(0, 1.1), xlabel='share of informative positions', title=f"SRU's gate: {model.title}")
    return figure


if __name__ == '__main__':
    sys.exit(run(main))
