"""The C functions' parameters, read from ``csrc/kernels.h``, and the check of their arguments."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Argument = Tensor | ctypes.Array[ctypes.c_int64] | float | None
_CTYPES = {'int': ctypes.c_int, 'int64_t': ctypes.c_int64, 'float': ctypes.c_float, 'double': ctypes.c_double}
_DTYPES = {'int': torch.int32, 'int64_t': torch.int64, 'float': torch.float32, 'double': torch.float64}
_COMMENT = re.compile(r'/\*.*?\*/', re.DOTALL)
_DIRECTIVE = re.compile(r'^\s*#.*$', re.MULTILINE)
_PROTOTYPE = re.compile(r'\bint (\w+)\(([^)]*)\);')
_PARAMETER = re.compile(r'(?:const )?(int|int64_t|float|double|Map) (\*?)((?:NULLABLE )?)(\w+)')
# A Map's values, by the parameter `bf16` of the same call.
MAP_DTYPES = (torch.float32, torch.bfloat16)
# Subclasses may own no memory (FakeTensor, for example). nn.Parameter does.
_WITH_MEMORY = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a C function.

    Attributes:
        name: As in the header.
        ctype: For ctypes.
        dtype: Dtype of the values behind a pointer; None for a number and for a Map.
        nullable: Whether a pointer may be NULL.
        is_map: Whether the pointer is a Map's, whose dtype each call says.
    """

    name: str
    ctype: Any
    dtype: torch.dtype | None = None
    nullable: bool = False
    is_map: bool = False

    def address(self, argument: Argument, function: str, dtype: torch.dtype | None) -> Argument:
        """Return ctypes' argument for a pointer to values of ``dtype``: a tensor's address, an array, or None.

        Raises:
            TypeError: ``argument`` is anything else, or a tensor that the function cannot read.
        """
        # Cheap checks first: this runs some twenty times a call, in about 0.2 microseconds.
        if type(argument) in _WITH_MEMORY:
            assert isinstance(argument, Tensor)  # for mypy
            if argument.dtype is dtype and argument.is_cpu and not argument.is_neg():
                try:
                    address = argument.data_ptr()
                except RuntimeError:  # a wrapper of torch.func has no memory
                    address = 0
                if address or not argument.numel():
                    return address
        elif argument is None and self.nullable:
            return None
        elif isinstance(argument, ctypes.Array) and argument._type_ is ctypes.c_int64 and dtype is torch.int64:
            return argument
        wanted = f'a CPU tensor of {dtype} with memory of its own' + (' or None' if self.nullable else '')
        raise TypeError(f'{function}: {self.name} must be {wanted}, got {_description(argument)}')


def prototypes(header: str) -> dict[str, tuple[Parameter, ...]]:
    """Return the parameters of each function that ``header`` declares.

    Raises:
        ValueError: A declaration that the header's own rules do not allow.
    """
    text = ' '.join(_DIRECTIVE.sub('', _COMMENT.sub('', header)).split())
    found = {name: tuple(map(_parameter, parameters.split(', '))) for name, parameters in _PROTOTYPE.findall(text)}
    for name, parameters in found.items():
        if any(p.is_map for p in parameters) and not any(p.name == 'bf16' for p in parameters):
            raise ValueError(f'{name} has a Map and no parameter bf16')
    text = text.replace('typedef void Map;', '')
    rest = _PROTOTYPE.sub('', text).strip()
    if rest:
        raise ValueError(f'not a declaration that Python can read: {rest}')
    return found


def _parameter(text: str) -> Parameter:
    match = _PARAMETER.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f'not a parameter that Python can read: {text}')
    kind, pointer, nullable, name = match.groups()
    if pointer:
        return Parameter(name, ctypes.c_void_p, _DTYPES.get(kind), bool(nullable), kind == 'Map')
    if kind == 'Map':
        raise ValueError(f'not a parameter that Python can read: {text}')
    return Parameter(name, _CTYPES[kind])


def _description(argument: Argument) -> str:
    if not isinstance(argument, Tensor):
        return repr(argument)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(argument)
    kind = 'a wrapper of torch.func' if wrapped else f'a {type(argument).__name__}'
    negated = ' with its negative bit set' if argument.is_neg() else ''
    return f'{kind} of {argument.dtype} on {argument.device}{negated}'
