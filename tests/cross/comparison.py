"""Replayed memory against recorded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.cross.program import THREADS
from tests.cross.recording import Call, Pointer, Region

# Greatest difference from the recording, as a part of the argument's greatest value. Compilers sum up in vectors of
# other lengths, and some fuse a multiplication with an addition. The error of a sum of n terms is about sqrt(n)
# roundings of fp32, 6e-8 each, and n is at most some thousands here. Sums in double have terms in fp32. A result of 16
# bits may be rounded to the next number.
ALLOWED = {
    torch.float32: 2e-6,
    torch.float64: 2e-6,
    torch.float16: torch.finfo(torch.float16).eps,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
}


@dataclass
class Row:
    """The comparison of all calls of an entry point.

    Attributes:
        calls: Their number.
        error: The greatest difference from the recording, as a part of the argument's greatest value.
        failures: A line for each argument that is not as recorded.
    """

    calls: int = 0
    error: float = 0.0
    failures: list[str] = field(default_factory=list)


def compared(
    names: Sequence[str], parameters: dict[str, list[str]], calls: Sequence[Call], results: list[list[list[Tensor]]]
) -> dict[str, Row]:
    """Return a row for each of ``names``, the entry points.

    Args:
        names: Of the functions.
        parameters: Their parameters' names.
        calls: The recording.
        results: Of the program: bytes for each number of threads, call and region.
    """
    rows = {name: Row() for name in names}
    for i, call in enumerate(calls):
        row = rows[call.name]
        row.calls += 1
        for piece in _pieces(call):
            where = f'{call.name}, call {i}, {parameters[call.name][piece.argument]}'
            first, *others = (of_threads[i][piece.region][piece.start : piece.end] for of_threads in results)
            for threads, other in zip(THREADS[1:], others, strict=True):
                if not torch.equal(first, other):
                    row.failures.append(f'{where}: not the same bits with {threads} threads')
            error, failure = _error(call.regions[piece.region], piece, first)
            row.error = max(row.error, error)
            if failure:
                row.failures.append(f'{where}: {failure}')
    for name, row in rows.items():
        if not row.calls:
            row.failures.append(f'{name}: no call was recorded; tests/cross/cases.py has to make one')
    return rows


@dataclass(frozen=True)
class Piece:
    """The bytes [start, end) of a region, which begin at an argument."""

    argument: int
    region: int
    start: int
    end: int
    dtype: torch.dtype


def _pieces(call: Call) -> list[Piece]:
    """Cut each region where its arguments begin."""
    pieces = []
    for index, region in enumerate(call.regions):
        begins = {
            a.offset: (i, a) for i, a in enumerate(call.arguments) if isinstance(a, Pointer) and a.region == index
        }
        offsets = sorted(begins)
        edges = (0, *offsets[1:], len(region.before))  # a slice: what lies before it belongs to it
        for offset, start, end in zip(offsets, edges[:-1], edges[1:], strict=True):
            argument, pointer = begins[offset]
            pieces.append(Piece(argument, index, start, end, pointer.dtype))
    return pieces


def _error(region: Region, piece: Piece, got: Tensor) -> tuple[float, str]:
    """Return the error of a piece, and why it is too much, or ''."""
    before, want = (t[piece.start : piece.end] for t in (region.before, region.after))
    if torch.equal(before, want) and not torch.equal(got, want):
        return 0.0, 'changed, but not in the recording'
    if not piece.dtype.is_floating_point:
        return 0.0, '' if torch.equal(got, want) else 'other integers'
    allowed = ALLOWED.get(piece.dtype)
    if allowed is None:
        return 0.0, f'how far {piece.dtype} may be off is not said in tests/cross/comparison.py'
    values, wanted = (t.clone().view(piece.dtype).double() for t in (got, want))
    finite = wanted.isfinite()
    if not torch.equal(values[~finite].nan_to_num(7.0), wanted[~finite].nan_to_num(7.0)):
        return 0.0, 'other values that are not finite'
    if not bool(values[finite].isfinite().all()):
        return 0.0, 'NaN or infinity where there was none'
    if not bool(finite.any()):
        return 0.0, ''
    error = ((values - wanted)[finite].abs().max() / (wanted[finite].abs().max() or 1.0)).item()
    return error, '' if error <= allowed else f'off by {error:.1e} of the greatest value, {allowed:.0e} are allowed'
