"""The parts of one image that came so far: one file, each part behind the one that came before it.

A file for each part cost the disk two waits however small it was. Here all that came together share one, see `sync`.
Each part stands behind its number and its size; what was half written when the agent died is cut off.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from edge_agent.base import durable

_HEAD = struct.Struct("<HI")
"""A part's number and its size in bytes."""
HEAD_BYTES = _HEAD.size


class PartFile:
    """Parts by number. One that comes again takes the place of its like if it is as long; else both take room.

    `size_bytes` is what the parts have together, `file_bytes` what they take. Raises OSError.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._places: dict[int, tuple[int, int]] = {}
        self.size_bytes = 0
        self.file_bytes = 0
        self._synced_bytes = 0
        if file.exists():
            self._recall(file.stat().st_size)

    def __len__(self) -> int:
        return len(self._places)

    def growth_bytes(self, part: int, content: bytes) -> tuple[int, int]:
        """Return by how much a part would make the image longer, and the file."""
        _, had_bytes = self._places.get(part, (0, None))
        new_bytes = 0 if had_bytes == len(content) else HEAD_BYTES + len(content)
        return len(content) - (had_bytes or 0), new_bytes

    def add(self, part: int, content: bytes) -> None:
        """Write a part; it is on the disk after the next `sync`."""
        at, had_bytes = self._places.get(part, (0, None))
        begin = at - HEAD_BYTES if had_bytes == len(content) else self.file_bytes
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(descriptor, _HEAD.pack(part, len(content)) + content, begin)
        except OSError:
            os.ftruncate(descriptor, self.file_bytes)
            raise
        finally:
            os.close(descriptor)
        self._note(part, begin, len(content))

    def sync(self) -> None:
        """Wait until the disk has what was added. What it does not take is forgotten: nobody was told of it yet."""
        try:
            durable.sync(self.file)
        except OSError:
            self._recall(self._synced_bytes)
            raise
        self._synced_bytes = self.file_bytes

    def pieces(self) -> Iterator[bytes]:
        """Yield what the parts hold, by number."""
        with self.file.open("rb") as opened:
            for _, (at, size_bytes) in sorted(self._places.items()):
                opened.seek(at)
                yield opened.read(size_bytes)

    def _recall(self, bytes_max: int) -> None:
        """Take stock of the file up to here, and cut off what is no whole part."""
        self._places, self.size_bytes, self.file_bytes = {}, 0, 0
        with self.file.open("r+b") as opened:
            while len(head := opened.read(HEAD_BYTES)) == HEAD_BYTES:
                part, size_bytes = _HEAD.unpack(head)
                end = self.file_bytes + HEAD_BYTES + size_bytes
                if not part or end > bytes_max:
                    break
                self._note(part, self.file_bytes, size_bytes)
                opened.seek(end)
            opened.truncate(self.file_bytes)
        self._synced_bytes = self.file_bytes

    def _note(self, part: int, begin: int, size_bytes: int) -> None:
        self.size_bytes += size_bytes - self._places.get(part, (0, 0))[1]
        self._places[part] = (begin + HEAD_BYTES, size_bytes)
        self.file_bytes = max(self.file_bytes, begin + HEAD_BYTES + size_bytes)


def _write_all(descriptor: int, content: bytes, at: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
