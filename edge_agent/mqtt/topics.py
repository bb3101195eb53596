"""Where messages go and come from.

The author of a message stands in its topic, so that the broker's ACL can vouch for it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

CLIENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
"""A requester's name."""


class Command(StrEnum):
    """What a requester can ask of an agent; the level of the topic that says so."""

    JOB = "job"
    CANCEL = "cancel"
    STATUS = "status"
    IMAGE = "image"


@dataclass(frozen=True)
class Topics:
    """The topics of one agent below the root of its fleet."""

    root: str
    agent: str

    @property
    def commands(self) -> str:
        """The filter of everything requesters may ask."""
        return f"{self.root}/agents/{self.agent}/cmd/+/+"

    def command(self, command: Command, client: str) -> str:
        """Where a requester asks."""
        return f"{self.root}/agents/{self.agent}/cmd/{command}/{client}"

    def parse(self, topic: str) -> tuple[str, str] | None:
        """Return what is asked and by whom, both unchecked; None for a topic that is no command to us."""
        prefix = f"{self.root}/agents/{self.agent}/cmd/"
        levels = topic.removeprefix(prefix).split("/")
        return (levels[0], levels[1]) if topic.startswith(prefix) and len(levels) == 2 else None

    def inbox_root(self, client: str) -> str:
        """The one response topic a requester may name."""
        return f"{self.root}/clients/{client}/inbox"

    def inbox(self, client: str, job_id: str, leaf: str) -> str:
        """Where a requester is answered; `leaf` is `status`, `chunk` or `result`."""
        return f"{self.root}/clients/{client}/inbox/{self.agent}/{job_id}/{leaf}"

    def event(self, leaf: str) -> str:
        """Where the agent tells of itself: `presence`, `info`, `decision`, `telemetry`."""
        return f"{self.root}/agents/{self.agent}/evt/{leaf}"

    def job_event(self, job_id: str) -> str:
        """Where monitors see a job's states."""
        return f"{self.root}/agents/{self.agent}/evt/jobs/{job_id}/status"
