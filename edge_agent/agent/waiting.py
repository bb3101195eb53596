"""A start that waits for what is not as it must be yet, and says so: the disk, the folder, another agent's lock."""

import threading
from collections.abc import Callable
from typing import TypeVar

from edge_agent.base.errors import EdgeAgentError, PassingError
from edge_agent.base.log import get_logger
from edge_agent.jobs.database import LockedError, StorageError, UnreadableError
from edge_agent.service.notify import Notifier

RETRY_S = 5.0
"""How often it is tried again."""
OPEN_S = 600.0
"""How long the service manager is asked to wait for a queue to be read through, or made over for a newer version."""

T = TypeVar("T")

log = get_logger()


def awaited(attempt: Callable[[], T], *, stopping: threading.Event, notifier: Notifier) -> T | None:
    """Return what comes of an attempt, made again as long as what hinders it may pass; None when told to stop.

    Raises SettingsError when it does not pass.
    """
    told = ""
    while not stopping.is_set():
        notifier.extend(OPEN_S)
        try:
            return attempt()
        except PassingError as error:
            event, reason, mend = "start.waits", str(error), "it goes on as soon as that is mended"
        except (StorageError, EdgeAgentError) as error:
            event, reason, mend = "queue.unwritable", str(error), "free disk space or mend the folder's rights"
            mend = error.mend if isinstance(error, LockedError | UnreadableError) else mend
        if reason != told:
            log.error(event, reason=reason, next=mend)
        told = reason
        notifier.status(f"waits: {reason}")
        stopping.wait(RETRY_S)
    return None
