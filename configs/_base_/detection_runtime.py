"""Shared part of configs of detectors: the layers of this package, and the hooks that make a training reliable."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mmscconv.models'], allow_failed_imports=False)

# Not in custom_hooks: that is a list, and a config that sets it would lose these hooks.
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook'),
    exact_resume=dict(type='ExactResume'),
    stop_on_non_finite=dict(type='StopOnNonFinite'),
    layout=dict(type='ChannelsLast', devices=['cpu']),  # not measured on a GPU, where CIFAR's configs use it
)
