"""A file on its way into the store: it grows, and is hashed as it grows."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from edge_agent.models.build_store import writing
from edge_agent.models.listing import WantedFile
from edge_agent.models.manifest import CHUNK_BYTES


class PartialFile:
    """What there is of a wanted file, with what an earlier process left; `told` hears how much of that is hashed.

    Every piece is with the kernel when `add` returns, so a killed process loses none. What cannot be written raises
    EdgeAgentError.
    """

    def __init__(self, path: Path, wanted: WantedFile, told: Callable[[int], None] = lambda _bytes: None) -> None:
        self.wanted = wanted
        self.have_bytes = 0
        self.most_bytes = 0
        """The most there ever was, over restarts."""
        self._path = path
        with writing(path.parent):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            self._begin()
            if os.fstat(self._file).st_size > wanted.size_bytes:
                os.ftruncate(self._file, 0)
            while piece := os.read(self._file, CHUNK_BYTES):
                self._count(piece)
                told(self.have_bytes)

    def add(self, piece: bytes) -> None:
        """Append what has come; the caller keeps it within the wanted size."""
        rest = memoryview(piece)
        with writing(self._path.parent):
            while rest:
                written = os.write(self._file, rest)
                self._count(rest[:written])
                rest = rest[written:]

    def restart(self) -> None:
        """Forget everything."""
        with writing(self._path.parent):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self._begin()

    def is_right(self) -> bool:
        """Whether it is whole and everything known of it is true."""
        return (
            self.have_bytes == self.wanted.size_bytes
            and self.wanted.sha256 in {None, self.sha256}
            and self.wanted.git_id in {None, self._git_id.hexdigest()}
        )

    @property
    def sha256(self) -> str:
        """The hash of what there is."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _begin(self) -> None:
        self.have_bytes = 0
        self._sha256 = hashlib.sha256()
        # git's id of a blob: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        self._git_id = hashlib.sha1(b"blob %d\0" % self.wanted.size_bytes, usedforsecurity=False)

    def _count(self, piece: bytes | memoryview) -> None:
        self._sha256.update(piece)
        if self.wanted.git_id is not None:
            self._git_id.update(piece)
        self.have_bytes += len(piece)
        self.most_bytes = max(self.most_bytes, self.have_bytes)
