"""Files that a cut of power leaves whole."""

import os
import tempfile
from pathlib import Path


def write(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write, sync, rename, sync the folder: there is the old file or the new one at any time. Raises OSError.

    mode: who may read it, whatever the umask says: the agent may be another user than who wrote it.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no path
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file or folder on the disk, not only in memory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
