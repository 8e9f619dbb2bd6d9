"""Hooks for configs; importing this module registers them in mmengine's root registry."""

from mmscconv.hooks.channels_last import ChannelsLast
from mmscconv.hooks.gate_shares import GateShares
from mmscconv.hooks.stop_on_non_finite import StopOnNonFinite

__all__ = ['ChannelsLast', 'GateShares', 'StopOnNonFinite']
