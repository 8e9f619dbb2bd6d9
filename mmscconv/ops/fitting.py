"""Checks that the tensors of a kernel's call fit each other: it would read or write beyond their ends."""

from __future__ import annotations

from torch import Tensor


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
