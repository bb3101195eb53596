"""The models that are pinned, on disk: an administrator's word outlives the agent."""

from collections.abc import Collection
from pathlib import Path

from edge_agent.base import durable
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
        try:
            durable.write(self._file, "".join(f"{name}\n" for name in sorted(names)))
        except OSError as error:
            sentence = f"the pin cannot be kept ({error.strerror}); free space on the device"
            raise EdgeAgentError(Code.STORAGE_FULL, sentence) from None
