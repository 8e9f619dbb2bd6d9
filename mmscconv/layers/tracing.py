"""Graphs of whole models: torch.fx sees a layer as one node, and torch.jit.script raises a clear error."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from mmscconv.layers.hooked import has_forward_hooks


class OneNode(nn.Module):
    """A mixin for layers whose forward starts with ``if isinstance(x, Proxy): return self.node(x)``.

    torch.fx then treats the layer like ``nn.Conv2d``: as one ``call_module`` node,
    which runs the layer itself, input checks and choice of kernels included.
    """

    def node(self, x: Proxy) -> Any:
        """Return the output's proxy.

        Raises:
            TraceError: The layer is the root of the trace, has a forward hook, or ``x``
                belongs to no tracer of modules.
        """
        name = type(self).__name__
        if has_forward_hooks(self):
            # The trace calls the hooks with proxies; the graph, which calls the layer, calls them again.
            raise TraceError(f'{name} has a forward hook, which the traced graph would call twice: add it afterwards')
        path_of_module = getattr(x.tracer, 'path_of_module', None)
        path = path_of_module(self) if path_of_module is not None else ''
        if not path:
            raise TraceError(
                f'{name} is one node of a graph and cannot be traced alone: '
                f'trace the model that contains it, or nn.Sequential(layer)'
            )
        return x.tracer.create_proxy('call_module', path, (x,), {})

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script calls this for its module and all modules inside.
        raise NotImplementedError(
            f'{type(self).__name__} cannot be compiled by torch.jit.script: use torch.jit.trace(model, example), '
            'torch.export.export(model, (example,)), or tools/export.py for an ONNX or .pt2 file'
        )
