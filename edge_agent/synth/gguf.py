"""Writes GGUF files, llama.cpp's: a header, facts by name, what tensors there are, then their bytes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_agent.synth.quantize import Floats, Int4

ALIGNMENT = 32
"""Of every tensor in the file: the format's default."""
Q4_0_WEIGHTS = 32
"""Weights that share a scale in a Q4_0 tensor."""
_Q4_0_BYTES = 18
_VERSION = 3
_INT32, _UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 5, 4, 6, 7, 8, 9
"""The format's numbers for types of facts."""

Fact = str | bool | int | float | Sequence[str] | Sequence[float] | Sequence[int]


class Type(IntEnum):
    """The format's numbers for types of tensors."""

    F32 = 0
    F16 = 1
    Q4_0 = 2


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is in a file under a name: `shape` as numpy has it; the numbers are made when they are written."""

    name: str
    shape: tuple[int, ...]
    type: Type
    make: Callable[[], npt.NDArray[Any]]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        numbers = int(np.prod(self.shape))
        return numbers // Q4_0_WEIGHTS * _Q4_0_BYTES if self.type is Type.Q4_0 else numbers * (4 - 2 * self.type)


def matrix(name: str, shape: tuple[int, int], make: Callable[[], Int4], *, exact: bool) -> Tensor:
    """Return a tensor of 4-bit weights: as Q4_0, which holds the very same numbers, or `exact` as F32.

    As F32 the activations it is multiplied with are not rounded either.
    Raises ValueError for rows that Q4_0 cannot hold.
    """
    if exact:
        return floats(name, shape, lambda: make().floats())
    if shape[1] % Q4_0_WEIGHTS:
        raise ValueError(f"{name} has rows of {shape[1]} weights, and Q4_0 asks for a multiple of {Q4_0_WEIGHTS}")
    return Tensor(name, shape, Type.Q4_0, lambda: _q4_0(make()))


def floats(name: str, shape: tuple[int, ...], make: Callable[[], Floats], *, kind: Type = Type.F32) -> Tensor:
    """Return a tensor of floats, of 32 or 16 bits."""
    return Tensor(name, shape, kind, lambda: make().astype(np.float16 if kind is Type.F16 else np.float32))


def write(path: Path, facts: Mapping[str, Fact], tensors: Sequence[Tensor], *, written: Callable[[int], None]) -> None:
    """Write a file; `written` is told of each tensor by its number."""
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(facts)))
        for key, fact in facts.items():
            file.write(_string(key) + _fact(fact))
        offset = 0
        for tensor in tensors:
            shape = struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))  # the innermost first
            file.write(_string(tensor.name) + struct.pack("<I", len(tensor.shape)) + shape)
            file.write(struct.pack("<IQ", tensor.type, offset))
            offset += tensor.bytes + -tensor.bytes % ALIGNMENT
        for number, tensor in enumerate(tensors):
            _align(file)
            tensor.make().tofile(file)
            written(number)
        _align(file)


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _q4_0(weights: Int4) -> npt.NDArray[np.uint8]:
    """Return blocks of a scale in float16 and 16 bytes, whose low nibbles are the first 16 weights."""
    if weights.block_size % Q4_0_WEIGHTS:
        raise ValueError(f"block_size must be a multiple of {Q4_0_WEIGHTS}: Q4_0 has a scale for so many weights")
    packed = weights.packed.reshape(weights.rows, -1, Q4_0_WEIGHTS // 2)[:, : weights.columns // Q4_0_WEIGHTS]
    scales = np.repeat(weights.scales, weights.block_size // Q4_0_WEIGHTS, axis=1)[:, : packed.shape[1]]
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(*packed.shape[:2], 2, Q4_0_WEIGHTS // 2)
    blocks = np.empty((*packed.shape[:2], _Q4_0_BYTES), np.uint8)
    blocks[..., :2] = scales.astype("<f2")[..., None].view(np.uint8)
    blocks[..., 2:] = nibbles[:, :, 0] | nibbles[:, :, 1] << 4
    return blocks


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _fact(fact: Fact) -> bytes:
    """Return a fact with its type before it."""
    match fact:
        case str():
            return struct.pack("<I", _STRING) + _string(fact)
        case bool():
            return struct.pack("<I?", _BOOL, fact)
        case int():
            return struct.pack("<II", _UINT32, fact)
        case float():
            return struct.pack("<If", _FLOAT32, fact)
        case _:
            return struct.pack("<I", _ARRAY) + _array(fact)


def _array(items: Iterable[str] | Iterable[float]) -> bytes:
    out = BytesIO()
    kinds = {str: _STRING, float: _FLOAT32, int: _INT32}
    values = list(items)
    out.write(struct.pack("<IQ", kinds[type(values[0])], len(values)))
    for value in values:
        out.write(
            _string(value) if isinstance(value, str) else struct.pack("<f" if type(value) is float else "<i", value)
        )
    return out.getvalue()
