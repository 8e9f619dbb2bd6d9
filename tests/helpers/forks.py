"""Processes that are forks of one server, which has imported what the tests need: torch, mmdet and the layers.

A process has one such server, and the list of imports that counts is the one that was set before its start. So it
stands here alone. The server keeps the environment variables of its start.
"""

import multiprocessing

METHOD = 'forkserver'
PRELOADED = (
    'torch',
    'torch._meta_registrations',
    'torch._subclasses.fake_tensor',
    'torch._refs',
    'pytest',
    'mmdet.apis',
    'mmpretrain',
    'mmscconv.models',
)
CONTEXT = multiprocessing.get_context(METHOD)
CONTEXT.set_forkserver_preload(list(PRELOADED))
