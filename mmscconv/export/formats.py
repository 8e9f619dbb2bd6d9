"""The formats that are written: what their files are called, what they need, and which options they have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of ``tools/export.py``; :mod:`mmscconv.export.writing` writes and opens its files.

    Attributes:
        title: Its name in messages.
        suffix: Of the file that is named by ``--out``.
        beside: Suffixes of the files beside it, whose reader finds them by their names: ``--out`` needs ``suffix``.
        extra: Extra of this package that installs what writes and runs it; None if torch does.
        options: Options of the tool that it has.
    """

    title: str
    suffix: str
    beside: tuple[str, ...] = ()
    extra: str | None = None
    options: tuple[str, ...] = ()


FORMATS = {
    'onnx': Format('ONNX', '.onnx', extra='export', options=('--postprocess', '--int8', '--custom-op')),
    'pt2': Format('torch.export', '.pt2'),
    'openvino': Format('OpenVINO', '.xml', ('.bin',), 'openvino', ('--postprocess',)),
    'ncnn': Format('ncnn', '.param', ('.bin', '.json'), 'ncnn'),
}
SUFFIXES = tuple(format.suffix for format in FORMATS.values())


def named_by(suffix: str) -> str | None:
    """Return the name of the format whose files end with ``suffix``, or None."""
    return next((name for name, format in FORMATS.items() if format.suffix == suffix), None)
