"""Reads what a GGUF file says of itself: numbers and words by name, never its weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from edge_agent.base.errors import Code, EdgeAgentError

FACTS_MAX = 4096
LIST_MAX = 2**22
"""Entries of a list; the largest vocabularies have a quarter of a million."""
TEXT_BYTES_MAX = 2**20
"""Names and texts of one file together; a chat template takes some thousand."""
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's numbers for types that have a fixed size, and struct's letters for them."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)

Fact = int | float | str


def gguf_file(path: Path) -> Path:
    """Return the GGUF file meant by its own path or that of the folder it lies in.

    Raises EdgeAgentError MODEL_MISSING when there is not one of them in the folder.
    """
    if path.is_file():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise EdgeAgentError(
            Code.MODEL_MISSING, f"{path} holds {len(files)} files *.gguf; point models.serve.path at the one you mean"
        )
    return files[0]


def read_facts(path: Path) -> Mapping[str, Fact]:
    """Return the facts of a file by name, but for lists: the vocabulary is of no use here.

    Raises ValueError for what is no such file, OSError when it cannot be read.
    """
    with path.open("rb") as file:
        reader = _GgufReader(file)
        magic = file.read(4)
        version, _, count = reader.unpacked("IQQ")
        if magic != b"GGUF" or version not in _VERSIONS or count > FACTS_MAX:
            raise ValueError(f"{path.name} is no GGUF file of version {' or '.join(map(str, _VERSIONS))}")
        facts: dict[str, Fact] = {}
        for _ in range(count):
            key = reader.text()
            (kind,) = reader.unpacked("I")
            if kind == _ARRAY:
                reader.skip_list()
            else:
                facts[key] = reader.text() if kind == _STRING else reader.number(kind)
        return facts


class _GgufReader:
    """Reads on in a file; nothing in it decides how much memory that takes, or how long."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left_bytes = TEXT_BYTES_MAX

    def number(self, kind: int) -> int | float:
        number: int | float = self.unpacked(_letter(kind))[0]
        return number

    def text(self) -> str:
        (length,) = self.unpacked("Q")
        if length > self._left_bytes:
            raise ValueError("the file holds texts that are too long")
        self._left_bytes -= length
        return self._file.read(length).decode(errors="replace")

    def skip_list(self) -> None:
        kind, length = self.unpacked("IQ")
        if length > LIST_MAX:
            raise ValueError("the file holds a list that is too long")
        if kind != _STRING:
            self._file.seek(length * struct.calcsize(f"<{_letter(kind)}"), 1)
            return
        for _ in range(length):
            self._file.seek(self.unpacked("Q")[0], 1)

    def unpacked(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(f"<{form}")
        content = self._file.read(size)
        if len(content) < size:
            raise ValueError("the file ends too early")
        return struct.unpack(f"<{form}", content)


def _letter(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError("the file holds a type of fact that is not known")
    return _NUMBERS[kind]
