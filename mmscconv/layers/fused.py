"""The one place where kernels and rearranged forms replace the modules of a layer.

A layer's ``forward`` calls its modules, one equation after the other.
``replaced_by(function)`` first tries ``function(layer, x)``, once a call; if it
returns None, ``forward`` runs.

A module is replaced only if nobody can notice (:func:`intact`) and a kernel is built
for its input (:func:`mmscconv.ops.choose_backend`, :func:`mmscconv.ops.fits`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F  # noqa: N812, the field's name for it
from torch import Tensor, nn
from torch.fx import Proxy

from mmscconv import identities, ops
from mmscconv.layers.aligned_pool import AlignedAvgPool2d
from mmscconv.layers.folding import folded, is_affine, update_statistics, with_identity
from mmscconv.layers.intact import as_its_class, intact, undisturbed
from mmscconv.layers.recompute import recomputed, same_random_numbers, statistics_kept

if TYPE_CHECKING:
    from mmscconv.layers.cru import CRU, ChannelUnit
    from mmscconv.layers.deploy import DeployedCRU
    from mmscconv.layers.sru import SRU

Branches = tuple[Tensor | None, Tensor | None]
Halves = tuple[Tensor, Tensor]
SRUArguments = tuple[Tensor, Tensor, int, float, float, bool]


class Unit(Protocol):
    """SRU, CRU and the CRU's deploy form."""

    def check(self, x: Tensor) -> None: ...
    def node(self, x: Proxy) -> Any: ...


L = TypeVar('L', bound=Unit)

_group_norm_is_kept = False
# Channels of a vector. PyTorch's batch norm is slow on maps whose channels do not fill vectors.
VECTOR = 16
# Channels of X_up up to which GWC and PWC1 are one dense convolution on a CPU: oneDNN's grouped ones take longer there,
# in ResNet-20's first stage seven times as long.
NARROW = 8


def replaced_by(
    function: Callable[[L, Tensor], Tensor | None], exported: Callable[[L, Any], Any]
) -> Callable[[Callable[[L, Tensor], Tensor]], Callable[..., Any]]:
    """Decorate a unit's ``forward``, its definition for (N, C, H, W), with a ``function`` that may run instead.

    The wrapper checks the input, and adds the batch axis to an unbatched one, (C, H, W).

    Args:
        function: Returns the unit's output, or None to let ``forward`` run.
        exported: Runs where an exported graph hands over X^w in halves, which :func:`sru_then_cru` has checked: the
            SRU returns them, and the CRU gets them. The units are called as modules, so that their nodes have their
            names.
    """

    def decorate(forward: Callable[[L, Tensor], Tensor]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(self: L, x: Tensor | Halves, in_halves: bool = False) -> Any:
            if in_halves:
                return exported(self, x)
            x = cast('Tensor', x)
            if isinstance(x, Proxy):
                return self.node(x)
            self.check(x)
            if x.dim() == 3:
                return run(self, x.unsqueeze(0)).squeeze(0)
            y = function(self, x) if as_its_class(cast('nn.Module', self)) else None
            return forward(self, x) if y is None else y

        return run

    return decorate


def sru(layer: SRU, x: Tensor) -> Tensor | None:
    """SRU by one kernel or, in graphs, with one affine."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain':
        if not ops.becoming_graph() or not undisturbed(layer.gn):
            return None
        if ops.exporting():
            return torch.cat(sru_halves(layer, x), dim=1)
        return identities.sru(x, *sru_arguments(layer, x.dtype), one_operator=not ops.transformed())
    if not x.numel() or not intact(layer, 'gn'):
        return None
    return ops.sru(x, *sru_arguments(layer, x.dtype), backend=backend)


def sru_halves(layer: SRU, x: Tensor) -> Halves:
    """SRU's output in halves, for exported graphs."""
    return identities.sru_halves(x, *sru_arguments(layer, x.dtype), one_operator=_group_norm_is_kept)


@contextmanager
def group_norm_kept() -> Iterator[None]:
    """Let exported graphs have GN as one operator, for runtimes that fuse nothing and have a kernel for it."""
    global _group_norm_is_kept
    _group_norm_is_kept = True
    try:
        yield
    finally:
        _group_norm_is_kept = False


def sru_arguments(layer: SRU, dtype: torch.dtype) -> SRUArguments:
    """Return the arguments of :func:`mmscconv.ops.sru` that follow an input of ``dtype``."""
    gn = layer.gn
    scale, shift = identities.affine(gn.weight, gn.bias, gn.eps, dtype)
    return scale, shift, gn.num_groups, gn.eps, layer.logit_threshold, layer.gate == 'hard'


def cru(layer: CRU, x: Tensor) -> Tensor | None:
    """CRU with its squeezes as one convolution, and as few kernels as possible from GWC to fuse."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain' or not x.numel():
        return _exported(layer, layer.squeeze(x)) if ops.exporting() else None
    return _transformed(layer, _normed(layer, _squeezed(layer, x), backend), backend)


def cru_of_halves(layer: ChannelUnit, halves: Halves) -> Tensor:
    """CRU, or its deploy form, of SRU's output in halves, for exported graphs."""
    y = _exported(layer, layer.squeeze_halves(*halves))
    assert y is not None  # both branches are there
    return y


def _exported(layer: ChannelUnit, branches: Branches) -> Tensor | None:
    """Return the output of the squeezed branches in few operators, for exported graphs; None without both branches."""
    x_up, x_low = layer.normed(*branches)
    if x_up is None or x_low is None:
        return None
    first, second = layer.transform_up(x_up)
    made, low = layer.transform_low(x_low)
    y = identities.fuse(first, low, second, made, getattr(layer, 'scale', None), getattr(layer, 'shift', None))
    return F.relu(y) if getattr(layer, 'relu', False) else y


def _through_halves(layer: ChannelUnit, before: SRU, x: Tensor) -> Tensor | None:
    """``layer(before(x))`` of an exported graph, X^w handed over in halves if the CRU splits it there, else None."""
    c = layer.channels
    if not ops.exporting() or not undisturbed(before, layer, before.gn) or c.up != c.low:
        return None
    before.check(x)
    return cast('Tensor', layer(before(x, in_halves=True), in_halves=True))


def sru_then_cru(layer: CRU, before: SRU, x: Tensor) -> Tensor | None:
    """``layer(before(x))`` without keeping X^w for backward."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain':
        return _through_halves(layer, before, x)
    if not x.numel() or not undisturbed(before, layer):
        return None
    if not intact(before, 'gn') or not intact(layer, 'squeeze_up', 'squeeze_low', 'pool'):
        branches = _normed(layer, _squeezed(layer, before(x)), backend)
    elif _one_kernel_squeezes(layer, before, x, backend):
        branches = _squeezed_by_kernel(layer, before, x)
    else:
        squeezed = recomputed(
            lambda x: _squeezed(layer, before(x)), x, before, layer.squeeze_up, layer.squeeze_low, random=False
        )
        branches = _normed(layer, squeezed, backend)
    return _transformed(layer, branches, backend)


def _squeezed(layer: ChannelUnit, x: Tensor) -> Branches:
    """Return the squeezed branches before their norms, by one grouped convolution if both squeezes are alike."""
    if not layer.squeezes_alike or not intact(layer, 'squeeze_up', 'squeeze_low', 'pool'):
        return layer.squeeze(x)
    return side_by_side(cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low), x)


def side_by_side(up: nn.Conv2d, low: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``up`` of the first and ``low`` of the second half of ``x`` by one convolution in two groups."""
    bias = None if up.bias is None or low.bias is None else torch.cat((up.bias, low.bias))
    x_up, x_low = F.conv2d(x, torch.cat((up.weight, low.weight)), bias, groups=2).split(len(up.weight), dim=1)
    return x_up, x_low


def _fit(x: Tensor, *weights: Tensor, norms: bool = False) -> bool:
    """Return whether the joined kernels give what convolutions of ``x`` with ``weights`` give, also under autocast.

    They read and write maps in fp32 or bf16, and compute in fp32. Under autocast to bf16 the maps between
    convolutions are bf16, whatever the weights are.

    Args:
        x: (N, C, H, W).
        weights: Of convolutions, or of norms.
        norms: Of norms, which take maps in bf16 with weights in fp32.
    """
    allowed = {x.dtype, torch.float32} if norms else {x.dtype}
    if torch.is_autocast_enabled('cpu'):
        if torch.get_autocast_dtype('cpu') is not x.dtype:
            return False
        allowed = {x.dtype, torch.float32}
    return all(t.dtype in allowed for t in weights) and ops.fits(x)


def _fp32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float()


def _normed(layer: CRU, branches: Branches, backend: str) -> Branches:
    """Return ``layer.normed(*branches)``; norms of few channels with the batch's statistics by a kernel each."""
    if backend != 'native' or not intact(layer, 'norm_up', 'norm_low'):
        return layer.normed(*branches)
    return _normed_branches(layer, branches)


def _normed_branches(layer: CRU, branches: Branches) -> Branches:
    x_up, x_low = branches
    return _normed_branch(layer.norm_up, x_up), _normed_branch(layer.norm_low, x_low)


def _normed_branch(norm: nn.Module | None, x: Tensor | None) -> Tensor | None:
    if norm is None or x is None:
        return x
    if type(norm) is not nn.BatchNorm2d or norm.weight is None or is_affine(norm):
        return cast('Tensor', norm(x))
    channels, count = x.shape[1], x.numel() // x.shape[1]
    # BN raises for a single value per channel; leave the error to it.
    if (channels > VECTOR and channels % VECTOR == 0) or count == 1 or not _fit(x, norm.weight, norm.bias, norms=True):
        return cast('Tensor', norm(x))
    y, mean, variance = ops.batch_norm(x, norm.weight.float(), norm.bias.float(), norm.eps)
    update_statistics(norm, mean, variance, count)
    return y


def _one_kernel_squeezes(layer: CRU, before: SRU, x: Tensor, backend: str) -> bool:
    up, low = layer.squeeze_up, layer.squeeze_low
    if {backend, before.backend or backend} != {'native'} or up is None or low is None:
        return False
    return _fit(x, up.weight, low.weight)


def _squeezed_by_kernel(layer: CRU, before: SRU, x: Tensor) -> Branches:
    """Return the squeezed and normed branches of ``before(x)``; norms in eval mode are folded into the squeezes."""
    squeeze_up, squeeze_low = cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low)
    up, low = ((conv.weight.float(), _fp32(conv.bias)) for conv in (squeeze_up, squeeze_low))
    norms_intact = intact(layer, 'norm_up', 'norm_low')
    if norms_intact and is_affine(layer.norm_up) and is_affine(layer.norm_low):
        up, low = folded(*up, layer.norm_up), folded(*low, layer.norm_low)
        return squeeze_reconstructed(x, before, up, low, layer.pool)
    branches = squeeze_reconstructed(x, before, up, low, layer.pool)
    return _normed_branches(layer, branches) if norms_intact else layer.normed(*branches)


def squeeze_reconstructed(
    x: Tensor,
    before: SRU,
    up: tuple[Tensor, Tensor | None],
    low: tuple[Tensor, Tensor | None],
    pool: AlignedAvgPool2d,
) -> tuple[Tensor, Tensor]:
    """Return X_up and the pooled X_low of ``before(x)`` by one kernel.

    Args:
        x: (N, C, H, W).
        before: The SRU.
        up, low: Weight and bias of the squeezes, in fp32.
        pool: Of X_low; the kernel does a plain pool, unless gradients are recorded.
    """
    size = (1, 1) if torch.is_grad_enabled() or not pool.is_plain else pool.stride
    # A plain pool does not change a constant bias; other pools have empty windows, which give 0.
    kernel_bias = low[1] if pool.is_plain else None
    x_up, x_low = ops.sru_squeeze(x, sru_arguments(before, x.dtype), up[0], low[0], (up[1], kernel_bias), size)
    if size != pool.stride or not pool.is_plain:
        x_low = pool(x_low)
    return x_up, x_low if low[1] is None or kernel_bias is not None else x_low + low[1].to(x_low.dtype).view(-1, 1, 1)


def _transformed(layer: CRU, branches: Branches, backend: str) -> Tensor:
    """Return Y of the squeezed and normed branches."""
    x_up, x_low = branches
    if x_up is None or x_low is None:
        return layer.fuse(*layer.transform(x_up, x_low))
    if backend == 'native':
        if _one_kernel_transforms(layer, x_up, x_low):
            return _transformed_by_kernel(layer, x_up, x_low)
        if _one_kernel_norms(layer, x_up, x_low):
            return _normed_by_kernel(layer, x_up, x_low)
    pwc2_out, low = layer.transform_low(x_low)
    again = None
    if layer.output_is_kept and torch.is_grad_enabled():
        again = functools.partial(_transform_up_again(layer, x_up.device), x_up)
    y1, y1_addend = _transform_up(layer, x_up)
    # Modules in the place of the convolutions may give what the backend of the input does not take.
    return ops.fuse(
        y1, low, y1_addend, pwc2_out, output_is_kept=layer.output_is_kept, again=again, backend=layer.backend
    )


def _transform_up_again(layer: CRU, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return :func:`_transform_up` without updates of running statistics, and with the random numbers of now."""
    # Only other modules than the CRU's own are random.
    known = intact(layer, 'gwc', 'pwc1', 'pool', 'norm1') or ops.becoming_graph() or ops.transformed()
    as_now = nullcontext if known else same_random_numbers(device)

    def again(x_up: Tensor) -> tuple[Tensor, Tensor | None]:
        with statistics_kept(layer), as_now():
            return _transform_up(layer, x_up)

    return again


def _transform_up(layer: CRU, x_up: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return ``layer.transform_up(x_up)``, GWC and PWC1 of few channels as one convolution."""
    y1 = _y1_at_once(layer, x_up)
    if y1 is None:
        return layer.transform_up(x_up)
    return (y1 if layer.norm1 is None else layer.norm1(y1)), None


def _y1_at_once(layer: CRU, x_up: Tensor) -> Tensor | None:
    """Return Y1 before its norm by one dense convolution, or None where that is slower or not the same."""
    gwc, pwc1, window = layer.gwc, layer.pwc1, layer.gwc_window
    if gwc is None or pwc1 is None or window is None or window.centre is None or not layer.pool.is_identity:
        return None
    if x_up.device.type != 'cpu' or x_up.shape[1] > NARROW or not intact(layer, 'gwc', 'pwc1', 'pool'):
        return None
    weight = identities.y1_weight(gwc.weight, pwc1.weight, window.groups, window.centre)
    return F.conv2d(x_up, weight, None, gwc.stride, gwc.padding, gwc.dilation)


def _one_kernel_transforms(layer: CRU, x_up: Tensor, x_low: Tensor) -> bool:
    """Return whether one kernel can do GWC, PWC1, PWC2, norms in eval mode and fuse."""
    gwc, pwc1, pwc2 = layer.gwc, layer.pwc1, layer.pwc2
    if gwc is None or pwc1 is None or pwc2 is None or layer.gwc_window is None:
        return False
    if not intact(layer, 'gwc', 'pwc1', 'pwc2', 'pool', 'norm1', 'norm2'):
        return False
    if not is_affine(layer.norm1) or not is_affine(layer.norm2):
        return False
    return x_up.dtype is x_low.dtype and _fit(x_up, gwc.weight, pwc1.weight, pwc2.weight) and ops.fits(x_low)


def _transformed_by_kernel(layer: CRU, x_up: Tensor, x_low: Tensor) -> Tensor:
    window = cast('ops.Window', layer.gwc_window)
    pwc2_conv = cast('nn.Conv2d', layer.pwc2)
    up = None if layer.pool.is_identity and window.centre is not None else layer.pool(x_up)
    gwc, bias1 = folded(cast('nn.Conv2d', layer.gwc).weight.float(), None, layer.norm1)
    # The norm shifts the sum of GWC and PWC1 once.
    pwc1 = folded(cast('nn.Conv2d', layer.pwc1).weight.float(), None, layer.norm1)[0]
    pwc2, bias2 = pwc2_conv.weight.float(), _fp32(pwc2_conv.bias)
    if layer.norm2 is not None:
        # The norm also changes the X_low part of Y2: PWC2 has to compute all of Y2.
        pwc2, bias2 = folded(*with_identity(pwc2, bias2), layer.norm2)
    return ops.transform_fuse(x_up, up, x_low, (gwc, pwc1, pwc2), window, (bias1, bias2))


def _one_kernel_norms(layer: CRU, x_up: Tensor, x_low: Tensor) -> bool:
    """Return whether one kernel can do ``norm1`` and ``norm2`` with the batch's statistics, and fuse."""
    if layer.pwc2 is None or not intact(layer, 'norm1', 'norm2', 'pwc2'):
        return False
    norms = [norm for norm in (layer.norm1, layer.norm2) if type(norm) is nn.BatchNorm2d and norm.weight is not None]
    if len(norms) < 2 or any(map(is_affine, norms)):
        return False
    affine = [t for norm in norms for t in (norm.weight, norm.bias)]
    if x_up.dtype is not x_low.dtype or not _fit(x_up, layer.pwc2.weight):
        return False
    # BN raises for a single value per channel; leave the error to it.
    return _fit(x_low, *affine, norms=True) and x_low[:, 0].numel() > 1


def _normed_by_kernel(layer: CRU, x_up: Tensor, x_low: Tensor) -> Tensor:
    norms = cast('nn.BatchNorm2d', layer.norm1), cast('nn.BatchNorm2d', layer.norm2)
    pwc1, gwc, pwc2 = (cast('nn.Conv2d', conv) for conv in (layer.pwc1, layer.gwc, layer.pwc2))
    y1 = _y1_at_once(layer, x_up)
    if y1 is None:
        pwc1_out = pwc1(layer.pool(x_up))  # the pool first, as in transform_up
        y1 = gwc(x_up) + pwc1_out
    if y1.dtype is not x_low.dtype:  # modules in the place of the convolutions may convert
        return layer.fuse(norms[0](y1), layer.transform_low(x_low)[1])
    settings = ((norm.weight.float(), norm.bias.float(), norm.eps) for norm in norms)
    y, mean, variance = ops.norm_fuse(y1, pwc2(x_low), x_low, *settings)
    for norm, mu, v in zip(norms, mean, variance, strict=True):
        update_statistics(norm, mu, v, y[:, 0].numel())
    return y


def deployed(layer: DeployedCRU, x: Tensor) -> Tensor | None:
    """The CRU's deploy form with its squeezes as one convolution, and its fuse as one kernel."""
    backend = ops.choose_backend(x, layer.backend)
    if backend == 'plain' and ops.exporting():
        return _exported(layer, layer.squeeze(x))
    if backend == 'plain' or not x.numel() or not 0 < layer.channels.alpha < 1:
        return None
    x_up, x_low = cast('tuple[Tensor, Tensor]', _squeezed(layer, x))
    pwc2_out, low = layer.transform_low(x_low)
    y1, y1_addend = layer.transform_up(x_up)
    overwrite = intact(layer, 'gwc')  # a hook may have kept Y1
    scale, shift = _fp32(layer.scale), _fp32(layer.shift)
    y = ops.fuse(y1, low, y1_addend, pwc2_out, scale, shift, overwrite=overwrite, backend=layer.backend)
    return F.relu(y, inplace=True) if layer.relu else y


def sru_then_deployed(layer: DeployedCRU, before: SRU, x: Tensor) -> Tensor | None:
    """``layer(before(x))`` by one op, for inference."""
    if ops.exporting():
        return _through_halves(layer, before, x)
    if layer.packed is None or not ops.runs_on(x, layer.backend, layer.packed) or not undisturbed(before, layer):
        return None
    if not intact(before, 'gn') or not intact(layer, 'squeeze_up', 'squeeze_low', 'gwc', 'pwc1', 'pwc2', 'pool'):
        return None
    if before.backend not in (None, 'native') or not _fit(x):
        return None
    weights, fingerprint = layer.weights_as_packed()
    return ops.scconv(x, *op_arguments(layer, before, x.dtype), weights=weights, fingerprint=fingerprint)


def op_arguments(layer: DeployedCRU, before: SRU, dtype: torch.dtype) -> tuple[Any, Any, Any, Any, Any, Any, Any]:
    """Return the arguments of :func:`mmscconv.ops.scconv` for ``layer(before(x))``, ``x`` of ``dtype``."""
    c, gwc, pwc2 = layer.channels, cast('nn.Conv2d', layer.gwc), cast('nn.Conv2d', layer.pwc2)
    squeezes = cast('nn.Conv2d', layer.squeeze_up), cast('nn.Conv2d', layer.squeeze_low)
    return (
        sru_arguments(before, dtype),
        (layer.packed_up, layer.packed_low, *(conv.bias for conv in squeezes)),
        (layer.packed, gwc.bias, pwc2.bias, layer.scale, layer.shift),
        (c.up, c.squeezed_up, c.squeezed_low, layer.out_channels, pwc2.out_channels),
        layer.window,
        layer.centre,
        layer.relu,
    )
