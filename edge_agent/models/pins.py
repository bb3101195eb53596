"""The models that are pinned, on disk: an administrator's word outlives the agent."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError


class Pins:
    """A file with one name a line."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> frozenset[str]:
        """Return the names; none when there is no such file, or it cannot be read."""
        try:
            return frozenset(self._file.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError):
            return frozenset()

    def write(self, names: Collection[str]) -> None:
        """Keep these names, over a cut of power too. Raises EdgeAgentError STORAGE_FULL; then the old ones stay."""
        new = self._file.with_suffix(".new")
        try:
            with new.open("w", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in sorted(names))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)
            folder = os.open(self._file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            sentence = f"the pin cannot be kept ({error.strerror}); free space on the device"
            raise EdgeAgentError(Code.STORAGE_FULL, sentence) from None
