"""What configs of classifiers share: the layers and hooks of this package, and the stop at a NaN or infinite loss."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

custom_imports = dict(imports=['mmscconv.models', 'mmscconv.hooks'], allow_failed_imports=False)

# Here and not in custom_hooks, which is a list: whoever sets it would lose this hook.
default_hooks = dict(stop_on_non_finite=dict(type='StopOnNonFinite'))
