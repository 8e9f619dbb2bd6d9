"""Hooks for configs; importing this module registers them in mmengine's root registry."""

from mmscconv.hooks.channels_last import ChannelsLast

__all__ = ['ChannelsLast']
