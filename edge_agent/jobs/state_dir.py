"""The agent's state folder: its alone, and the durable queue in it."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.base.errors import PassingError, SettingsError
from edge_agent.base.log import get_logger
from edge_agent.jobs.database import DamagedError, SchemaTooNewError
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.retention import UNBOUNDED, Allowance

LASTING = frozenset({errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""What keeps a folder from being one whatever is mounted, unlocked or mended; but for a link to what is not there."""

log = get_logger()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Make the folder if need be and keep other agents out of it.

    Raises SettingsError when it cannot be a folder, PassingError when it cannot be used now or another agent has it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.EEXIST and (link := _astray(folder)):
            raise PassingError(f"agent.state_dir: {link} is a link to what is not there, or not mounted yet") from error
        raise (SettingsError if error.errno in LASTING else PassingError)(
            f"agent.state_dir: {folder} cannot be written: {error.strerror}; "
            "set it to a folder of this user (with --config), or run as the one it belongs to"
        ) from error
    try:
        _lock(descriptor, folder)
        yield folder
    finally:
        os.close(descriptor)


def _astray(folder: Path) -> Path | None:
    """Return the link of a path that leads nowhere; None when none does."""
    parts = (folder, *folder.parents)
    return next((each for each in parts if os.path.islink(each) and not os.path.exists(each)), None)  # noqa: PTH110, PTH114 - these never raise


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PassingError(f"agent.state_dir: {folder} is in use by another agent; give each its own") from None
    except OSError as error:
        raise PassingError(f"agent.state_dir: {folder} cannot be locked: {error.strerror}") from error


class Files:
    """What we work with in a state folder: the lock that keeps others out, and the queue.

    A folder that was moved, deleted or mounted over lets us work on, with what nobody finds any more.
    """

    def __init__(self, folder: Path) -> None:
        files = (folder / name for name in ("lock", "queue.db", "queue.db-wal"))
        self._known = {file: found for file in files if (found := _identity(file))}

    @property
    def gone(self) -> Path | None:
        """The first that is not there any more, or is another one; what cannot be told now is taken to be there."""
        for file, known in self._known.items():
            with contextlib.suppress(OSError):
                if _identity(file) != known:
                    return file
        return None


def _identity(file: Path) -> tuple[int, int] | None:
    """Return which file has a name; None when none has. Raises OSError."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def open_queue(folder: Path, *, age_step_s: float, allowance: Allowance = UNBOUNDED) -> Queue:
    """Open the queue; a damaged one is set aside, under a name that says when, and a fresh one begun.

    Raises StorageError when the disk takes nothing, SettingsError when a newer version wrote the queue.
    """
    file = folder / "queue.db"
    with contextlib.suppress(OSError):  # SQLite tells below why it cannot be written
        file.touch(mode=0o600)  # it holds prompts; its companions take over its mode
    try:
        return Queue(file, age_step_s=age_step_s, allowance=allowance)
    except SchemaTooNewError as error:
        raise SettingsError(f"agent.state_dir: {error}") from error
    except DamagedError as error:
        aside = _set_aside(file)
        log.error("queue.damaged", reason=str(error), kept_as=str(aside), next="a fresh queue is begun")
        return Queue(file, age_step_s=age_step_s, allowance=allowance)


def _set_aside(file: Path) -> Path:
    """Move a database and its companions out of the way; return where it lies now."""
    stem = f"{file.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = (file.with_name(f"{stem}{suffix}") for suffix in ("", *(f".{number}" for number in range(1, 1000))))
    aside = next(name for name in names if not name.exists())
    for suffix in ("-wal", "-shm", ""):
        companion = file.with_name(file.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    return aside
