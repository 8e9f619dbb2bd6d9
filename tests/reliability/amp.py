#!/usr/bin/env python
"""Train a classifier on real images under CPU autocast and compare the gates of its SRUs with those of fp32."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works from a checkout that is not installed

import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmscconv import SRU, get_config

DTYPES = {'fp16': torch.float16, 'bf16': torch.bfloat16}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data-root', required=True, help='images in the layout of ImageNet')
    parser.add_argument('--dtype', choices=DTYPES, required=True)
    parser.add_argument('--config', default='scconv_resnet50_imagenet', help='(default: %(default)s)')
    parser.add_argument('--iterations', type=int, default=200, help='(default: %(default)s)')
    parser.add_argument('--every', type=int, default=20, help='iterations between comparisons (default: %(default)s)')
    parser.add_argument('--size', type=int, default=64, help='pixels of an image (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=4, help='(default: %(default)s)')
    parser.add_argument('--base-channels', type=int, default=64, help='of the network (default: %(default)s)')
    parser.add_argument('--lr', type=float, default=0.01, help='(default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    dtype = DTYPES[args.dtype]
    model, loader = build(args)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    skipped, losses, agreements, start = 0, [], [], time.monotonic()
    for iteration, batch in enumerate(itertools.islice(batches, args.iterations), 1):
        data = model.data_preprocessor(batch, True)
        with torch.autocast('cpu', dtype):
            loss, _ = model.parse_losses(model(**data, mode='loss'))
        if not loss.isfinite():
            sys.exit(f'the loss is {loss.item()} at iteration {iteration}')
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
        losses.append(loss.item())
        if iteration % args.every == 0:
            agreements.append(compare(model, data['inputs'], dtype))
            same, output, end = agreements[-1]
            print(
                f'iteration {iteration}: loss {loss.item():.3f}; gates equal to fp32 on the same input {same:.4%} '
                f'(by the output {output:.4%}), end to end {end:.4%}',
                flush=True,
            )
    if not all(p.isfinite().all() for p in model.parameters()):
        sys.exit('weights are not finite')
    same, output, end = (min(column) for column in zip(*agreements, strict=True))
    mean = sum(a[2] for a in agreements) / len(agreements)
    print(
        f'{args.dtype}: {len(losses)} iterations, all losses finite, {skipped} steps skipped by the scaler, '
        f'{(time.monotonic() - start) / len(losses):.2f} s per iteration with comparisons\n'
        f'mean loss of the first 20 iterations {sum(losses[:20]) / 20:.3f}, of the last {sum(losses[-20:]) / 20:.3f}\n'
        f'least agreement: same input {same:.4%} (by the output {output:.4%}), end to end {end:.4%} (mean {mean:.4%})'
    )


def build(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    """Return the config's model and its loader of random crops."""
    cfg = get_config(args.config)
    init_default_scope('mmpretrain')
    cfg.train_dataloader.batch_size = args.batch
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    classes = sorted(path.name for path in (Path(args.data_root) / 'train').iterdir())
    cfg.train_dataloader.dataset.update(data_root=args.data_root, metainfo=dict(classes=classes))
    cfg.model.head.num_classes = len(classes)
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform['type'] == 'RandomResizedCrop':
            transform['scale'] = args.size
    if args.base_channels != 64:
        cfg.model.backbone.update(base_channels=args.base_channels, stem_channels=args.base_channels)
        cfg.model.head.in_channels = args.base_channels * 32
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.train(), Runner.build_dataloader(cfg.train_dataloader, seed=0)


@torch.no_grad()
def compare(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    """Return the shares of equal gates, over all SRUs, channels and positions.

    First of the layer: its decision under autocast against float64's on the same
    input. The same as seen in its output, which a flipped gate changes by a half of
    the input or so, far more than rounding does. Then of the network: its decisions
    in a forward under autocast against those of an fp32 forward of the same images.
    """
    state = {key: value.clone() for key, value in model.state_dict().items()}  # BN's statistics, of train mode
    with recorded(model) as full:
        model(inputs, mode='tensor')
    with torch.autocast('cpu', dtype):
        with recorded(model) as lowered:
            model(inputs, mode='tensor')
        decided = {name: (gates(sru, x), sru(x)) for name, (sru, x) in lowered.items()}
    model.load_state_dict(state)
    equal, whole, crossed, total = 0, 0, 0, 0
    for name, (sru, x) in lowered.items():
        mask, output = decided[name]
        double = sru.double()
        exact = gates(double, x.double())
        want = double(x.double())
        sru.float()
        equal += (mask == exact).sum().item()
        crossed += ((output.double() - want).abs() <= 0.02 * sum(halves(x.double().abs()))).sum().item()
        whole += (mask == gates(sru, full[name][1])).sum().item()
        total += mask.numel()
    return equal / total, crossed / total, whole / total


def gates(sru: SRU, x: Tensor) -> Tensor:
    return sru.informative(sru.logit(x))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two values that an SRU's output is made of (Eq. 4): of its own channel and of that half the channels on."""
    return x, x.roll(x.shape[1] // 2, dims=1)


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, tuple[SRU, Tensor]]]:
    """Record the input of every SRU."""
    found: dict[str, tuple[SRU, Tensor]] = {}

    def keep(name: str, sru: SRU, inputs: tuple[Tensor]) -> None:
        found[name] = sru, inputs[0].clone()

    srus = [(name, module) for name, module in model.named_modules() if isinstance(module, SRU)]
    handles = [sru.register_forward_pre_hook(partial(keep, name)) for name, sru in srus]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


if __name__ == '__main__':
    main()
