"""The device that a ``--device`` names."""

from __future__ import annotations

import torch

from mmscconv.errors import UserError
from mmscconv.foreign_errors import first_line


def device_of(name: str | None) -> torch.device:
    """Return the device called ``name``, after a small tensor went there; None takes a GPU where there is one.

    Raises:
        UserError: There is no such device here.
    """
    try:
        device = torch.device(name or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise UserError(f'--device {name} cannot be used here: {first_line(error)}') from error
    return device
