"""Reads what a GGUF file says of itself: numbers and words by name, never its weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

FACTS_MAX = 4096
TEXT_BYTES_MAX = 2**20
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's numbers for types that have a fixed size, and struct's letters for them."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)

Fact = int | float | str


def read_facts(path: Path) -> Mapping[str, Fact]:
    """Return the facts of a file by name, but for lists: the vocabulary is of no use here.

    Raises ValueError for what is no such file, OSError when it cannot be read.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        version, _, count = _unpacked(file, "IQQ")
        if magic != b"GGUF" or version not in _VERSIONS or count > FACTS_MAX:
            raise ValueError(f"{path.name} is no GGUF file of version {' or '.join(map(str, _VERSIONS))}")
        facts: dict[str, Fact] = {}
        for _ in range(count):
            key = _text(file)
            (kind,) = _unpacked(file, "I")
            if kind == _ARRAY:
                _skip_list(file)
            else:
                facts[key] = _text(file) if kind == _STRING else _number(file, kind)
        return facts


def _number(file: BinaryIO, kind: int) -> int | float:
    number: int | float = _unpacked(file, _letter(kind))[0]
    return number


def _letter(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError("the file holds a type of fact that is not known")
    return _NUMBERS[kind]


def _skip_list(file: BinaryIO) -> None:
    kind, length = _unpacked(file, "IQ")
    if kind != _STRING:
        file.seek(length * struct.calcsize(f"<{_letter(kind)}"), 1)
        return
    for _ in range(length):
        file.seek(_unpacked(file, "Q")[0], 1)


def _text(file: BinaryIO) -> str:
    (length,) = _unpacked(file, "Q")
    if length > TEXT_BYTES_MAX:
        raise ValueError("the file holds a text that is too long")
    return file.read(length).decode(errors="replace")


def _unpacked(file: BinaryIO, form: str) -> tuple[int, ...]:
    size = struct.calcsize(f"<{form}")
    content = file.read(size)
    if len(content) < size:
        raise ValueError("the file ends too early")
    return struct.unpack(f"<{form}", content)
