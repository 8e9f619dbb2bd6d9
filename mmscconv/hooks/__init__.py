"""Hooks for configs; importing this module registers them in mmengine's root registry."""

from mmscconv.hooks.channels_last import ChannelsLast
from mmscconv.hooks.drawing import ClassDrawingHook, DetectionDrawingHook
from mmscconv.hooks.exact_resume import ExactResume
from mmscconv.hooks.gate_shares import GateShares
from mmscconv.hooks.safe_checkpoint import SafeCheckpointHook
from mmscconv.hooks.stop_on_non_finite import StopOnNonFinite

__all__ = [
    'ChannelsLast',
    'ClassDrawingHook',
    'DetectionDrawingHook',
    'ExactResume',
    'GateShares',
    'SafeCheckpointHook',
    'StopOnNonFinite',
]
