"""Imports that the README and documentation of earlier checkouts named still work after the modules have moved."""

import importlib

import pytest

PATHS = [
    'mmscconv.CRU',
    'mmscconv.SRU',
    'mmscconv.SCConv',
    'mmscconv.LegacySCConv',
    'mmscconv.Replacement',
    'mmscconv.replace_conv',
    'mmscconv.convert_weights',
    'mmscconv.get_config',
    'mmscconv.list_configs',
    'mmscconv.benchmark',
    'mmscconv.complexity',
    'mmscconv.datasets',
    'mmscconv.doctor',
    'mmscconv.hooks',
    'mmscconv.engine.checkpoints.load_safely',
    'mmscconv.engine.cli.move_data_root',
    'mmscconv.layers.AlignedAvgPool2d',
    'mmscconv.layers.rivals.GhostConv',
    'mmscconv.layers.rivals.OctConv',
    'mmscconv.layers.rivals.SPConv',
    'mmscconv.layers.rivals.SlimConv',
    'mmscconv.layers.rivals.TiedConv',
    'mmscconv.models.CIFARBottleneckResNet',
    'mmscconv.models.CIFARDenseNet',
    'mmscconv.models.CIFARResNeXt',
    'mmscconv.models.CIFARResNet',
    'mmscconv.models.CIFARWideResNet',
    'mmscconv.models.ConvResNet',
    'mmscconv.models.OctResNet',
    'mmscconv.models.SCConvResNet',
    'mmscconv.models.build_with_replaced_convs',
    'mmscconv.models.switch_to_deploy',
    'mmscconv.ops.backend',
    'mmscconv.ops.fuse',
    'mmscconv.ops.sru',
]


@pytest.mark.parametrize('path', PATHS)
def test_it_can_be_imported(path):
    try:
        importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition('.')
        assert hasattr(importlib.import_module(module), name)
