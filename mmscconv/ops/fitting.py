"""Checks that the tensors of a kernel's call fit each other: it would read or write beyond their ends."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmscconv.ops.packing import PANEL, panels_of


def check(op: str, fitting: bool, **tensors: Tensor | None) -> None:
    """Raise ValueError unless ``fitting`` holds for the shapes of ``tensors``, and all lie on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if not fitting:
        shapes = ', '.join(f'{name} {tuple(t.shape)}' for name, t in given.items())
        raise ValueError(f'{op}: shapes do not match: {shapes}')
    device = next(iter(given.values())).device
    if any(t.device != device for t in given.values()):
        raise ValueError(f'{op}: tensors on several devices: {", ".join(f"{n} {t.device}" for n, t in given.items())}')


def has(t: Tensor | None, *shape: int) -> bool:
    """Return whether ``t`` has ``shape`` or is None."""
    return t is None or t.shape == shape


def check_sru(x: Tensor, scale: Tensor, shift: Tensor, num_groups: int) -> None:
    """Raise ValueError unless these are arguments of the SRU."""
    c = x.shape[1]
    fitting = c % 2 == c % num_groups == 0 and has(scale, c) and has(shift, c)
    check('sru', fitting, x=x, scale=scale, shift=shift)


def check_sru_backward(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> None:
    """Raise ValueError unless these are arguments of the SRU's backward."""
    groups = mean.shape[-1]
    check_sru(x, scale, shift, groups)
    fitting = grad.shape == x.shape and has(mean, len(x), groups) and has(rstd, len(x), groups)
    check('sru', fitting, grad=grad, x=x, mean=mean, rstd=rstd)


def check_fuse(
    y1: Tensor,
    x_low: Tensor,
    y1_addend: Tensor | None,
    pwc2_out: Tensor | None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> None:
    """Raise ValueError unless these are arguments of the fuse."""
    n, c, h, w = y1.shape
    fitting = has(y1_addend, n, c, h, w) and has(x_low, n, c if pwc2_out is None else x_low.shape[1], h, w)
    fitting = fitting and has(pwc2_out, n, c - x_low.shape[1], h, w) and has(scale, c) and has(shift, c)
    check('fuse', fitting, y1=y1, x_low=x_low, y1_addend=y1_addend, pwc2_out=pwc2_out, scale=scale, shift=shift)


def check_fuse_backward(grad: Tensor, reference: Tensor, x_low: Tensor, pwc2_out: Tensor | None, beta1: Tensor) -> None:
    """Raise ValueError unless these are arguments of the fuse's backward."""
    check_fuse(reference, x_low, grad, pwc2_out)
    check('fuse', has(beta1, *reference.shape[:2]), reference=reference, beta1=beta1)


def check_sru_squeeze(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    up: Tensor,
    low: Tensor,
    bias_up: Tensor | None,
    bias_low: Tensor | None,
) -> None:
    """Raise ValueError unless these are arguments of the SRU joined with the squeezes."""
    c = x.shape[1]
    fitting = has(scale, c) and has(shift, c) and c % 2 == c % num_groups == 0 and up.shape[1] + low.shape[1] == c
    fitting = fitting and has(bias_up, len(up)) and has(bias_low, len(low))
    check('sru_squeeze', fitting, x=x, scale=scale, shift=shift, up=up, low=low, bias_up=bias_up, bias_low=bias_low)


def check_sru_squeeze_backward(
    grad_up: Tensor,
    grad_low: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    up: Tensor,
    low: Tensor,
) -> None:
    """Raise ValueError unless these are arguments of the backward of the SRU joined with the squeezes."""
    groups = mean.shape[-1]
    check_sru(x, scale, shift, groups)
    n, c, h, w = x.shape
    fitting = has(grad_up, n, len(up), h, w) and has(grad_low, n, len(low), h, w) and up.shape[1] + low.shape[1] == c
    fitting = fitting and has(mean, n, groups) and has(rstd, n, groups)
    check('sru_squeeze', fitting, grad_up=grad_up, grad_low=grad_low, x=x, mean=mean, rstd=rstd, up=up, low=low)


def check_transform_fuse(
    x_up: Tensor,
    up: Tensor | None,
    low: Tensor,
    gwc: Tensor,
    pwc1: Tensor,
    pwc2: Tensor,
    bias1: Tensor | None,
    bias2: Tensor | None,
    groups: int,
    window: Sequence[int],
) -> None:
    """Raise ValueError unless these are arguments of the transform joined with the fuse."""
    n, u, c, l = len(x_up), x_up.shape[1], len(gwc), low.shape[1]  # noqa: E741, l as in the error messages
    fitting = u == groups * gwc.shape[1] and c % groups == 0 and has(pwc1, c, u, 1, 1)
    fitting = fitting and has(pwc2, len(pwc2), l, 1, 1) and len(pwc2) in (c, c - l)
    fitting = fitting and len(low) == n and (up is None or up.shape[:2] == (n, u))
    fitting = fitting and has(bias1, c) and has(bias2, len(pwc2)) and gwc.shape[2:] == tuple(window[:2])
    given = dict(x_up=x_up, up=up, low=low, gwc=gwc, pwc1=pwc1, pwc2=pwc2, bias1=bias1, bias2=bias2)
    check('transform_fuse', fitting, **given)


def check_scconv(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    num_groups: int,
    squeezes: Sequence[Tensor | None],
    transform: Sequence[Tensor | None],
    channels: Sequence[int],
    groups: int,
    window: Sequence[int],
    centre: int | None,
) -> None:
    """Raise ValueError unless these are arguments of the deployed layer.

    Its weights are packed; ``channels``: the cut, u, l, C2 and PWC2's output channels.
    """
    c, (cut, u, l, c2, pwc2_channels) = x.shape[1], channels  # noqa: E741
    up, low, bias_up, bias_low = squeezes
    packed_, bias1, bias2, norm_scale, norm_shift = transform
    depth = l + u + (window[0] * window[1] - (centre is not None)) * (u // groups)
    fitting = c % 2 == c % num_groups == u % groups == c2 % groups == 0 and pwc2_channels in (c2, c2 - l)
    fitting = fitting and has(scale, c) and has(shift, c) and has(bias_up, u) and has(bias_low, l)
    fitting = fitting and has(up, panels_of(u), cut, PANEL) and has(low, panels_of(l), c - cut, PANEL)
    fitting = fitting and has(packed_, groups * panels_of(c2 // groups), depth, PANEL)
    fitting = fitting and has(bias1, c2) and has(bias2, pwc2_channels) and has(norm_scale, c2) and has(norm_shift, c2)
    check('scconv', fitting, x=x, scale=scale, up=up, low=low, transform=packed_, bias1=bias1, bias2=bias2)
