#!/usr/bin/env python
"""Evaluate a checkpoint of a detector or a classifier."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a checkout that is not installed

from mmscconv.checks.environment import check_environment
from mmscconv.errors import UserError, run


def parse_args() -> argparse.Namespace:
    from mmscconv.engine.cli import add_common_arguments

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='draw predictions into this folder, under the work dir unless absolute')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between shown images')
    parser.add_argument('--deploy', action='store_true', help='fold norms into convolutions and SCConvs first')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> None:
    check_environment()
    args = parse_args()

    from mmscconv.checks.files import check_checkpoints
    from mmscconv.checks.inputs import check_inputs
    from mmscconv.engine.checkpoints import load_safely
    from mmscconv.engine.cli import broken_annotations_named, build_runner, innermost_dataset, load_config
    from mmscconv.engine.disk import replacing
    from mmscconv.engine.hooks import DeployForm, RequireMatchingCheckpoint

    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UserError(f'--out writes a pickle file, its name must end with .pkl or .pickle: {args.out}')
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise UserError(f'--tta needs tta_model and tta_pipeline in {args.config}')
        innermost_dataset(cfg.test_dataloader.dataset).pipeline = cfg.tta_pipeline
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    if args.show or args.show_dir:
        draw(cfg, args)
    load_safely(args.trusted)
    check_inputs(cfg, ('test',))
    check_checkpoints(cfg)
    runner = build_runner(cfg)
    runner.register_hook(RequireMatchingCheckpoint('test'))
    if args.deploy:
        runner.register_hook(DeployForm())
    with ExitStack() as stack:
        stack.enter_context(broken_annotations_named())
        if args.out:
            out = stack.enter_context(replacing(args.out))
            runner.test_evaluator.metrics.append(dump_metric(cfg, str(out)))
        runner.test()


def draw(cfg, args: argparse.Namespace) -> None:  # noqa: ANN001, mmengine is imported late
    """Switch on the visualization hook, which mmdet and mmpretrain configure differently."""
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UserError(f'--show and --show-dir need default_hooks.visualization in {args.config}')
    hook.update(show=args.show, wait_time=args.wait_time)
    if hook.type == 'DetVisualizationHook':
        hook.update(type='DetectionDrawingHook', draw=True, test_out_dir=args.show_dir)
    else:
        if hook.type == 'VisualizationHook':
            hook.type = 'ClassDrawingHook'
        hook.update(enable=True, interval=1, out_dir=args.show_dir and str(Path(cfg.work_dir) / args.show_dir))


def dump_metric(cfg, path: str):  # noqa: ANN001, ANN201, mmengine is imported late
    """Return the metric that writes predictions to ``path``; mmdet's own packs its masks."""
    if cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        return DumpDetResults(out_file_path=path)
    from mmengine.evaluator import DumpResults

    return DumpResults(out_file_path=path)


if __name__ == '__main__':
    sys.exit(run(main))
