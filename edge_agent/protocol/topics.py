"""Where messages go and come from.

The author of a message stands in its topic, so that the broker's ACL can vouch for it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.protocol.filters import publishable

CLIENT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")
"""A requester's name; agents and pools have such names too."""


NAME_RULE = "a-z 0-9 _ -, a letter or digit first, at most 63 of them"
"""The same, in words."""
MISNAMED = f"the last level of the topic is the requester's name: {NAME_RULE}"
LEVEL_BYTES_MAX = 255
"""Of a name that is none: whoever listens there is told so, while it makes no topic that a broker hangs up over."""


def answerable(client: str) -> bool:
    """Return whether somebody could listen for an answer under this name, be it a right one or not."""
    return 0 < len(client.encode()) <= LEVEL_BYTES_MAX and "/" not in client and publishable(client)


def check_name(field: str, name: object) -> None:
    """Raise EdgeAgentError BAD_REQUEST when nobody can have this name."""
    if not isinstance(name, str) or not CLIENT.match(name):
        raise EdgeAgentError(Code.BAD_REQUEST, f"{field}: {NAME_RULE}")


KEPT = ("info", "decision")
"""What an agent tells of itself that is retained, beside its presence."""


class Command(StrEnum):
    """What a requester can ask of an agent; the level of the topic that says so."""

    JOB = "job"
    CANCEL = "cancel"
    STATUS = "status"
    IMAGE = "image"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a topic says: what is asked, by whom, and of which pool; None when it is asked of this agent. Unchecked."""

    command: str
    client: str
    pool: str | None = None


@dataclass(frozen=True)
class Topics:
    """The topics of one agent below the root of its fleet."""

    root: str
    agent: str

    @property
    def commands(self) -> str:
        """The filter of everything requesters may ask."""
        return f"{self.root}/agents/{self.agent}/cmd/+/+"

    @property
    def near_misses(self) -> tuple[str, ...]:
        """Filters of what somebody may take for a command: without a name, or with something behind it."""
        own = f"{self.root}/agents/{self.agent}/cmd"
        return f"{own}/+", f"{own}/+/+/+"

    def command(self, command: Command, client: str) -> str:
        """Where a requester asks."""
        return f"{self.root}/agents/{self.agent}/cmd/{command}/{client}"

    def pool_jobs(self, pool: str) -> str:
        """The filter of a pool's jobs: the broker gives each to one of those who subscribed to it."""
        return f"$share/{pool}/{self.root}/pools/{pool}/{Command.JOB}/+"

    def pool_cancels(self, pool: str) -> str:
        """The filter of cancels that everybody in a pool hears."""
        return f"{self.root}/pools/{pool}/{Command.CANCEL}/+"

    def pool_command(self, pool: str, command: Command, client: str) -> str:
        """Where a requester asks any agent of a pool; a job or a cancel."""
        return f"{self.root}/pools/{pool}/{command}/{client}"

    def parse(self, topic: str) -> Asked | None:
        """Return what is asked of us; None for a topic that is no command to us."""
        own, pools = f"{self.root}/agents/{self.agent}/cmd/", f"{self.root}/pools/"
        if topic.startswith(own):
            levels = topic.removeprefix(own).split("/")
            return Asked(levels[0], levels[1]) if len(levels) == 2 else None
        if topic.startswith(pools):
            levels = topic.removeprefix(pools).split("/")
            return Asked(levels[1], levels[2], levels[0]) if len(levels) == 3 else None
        return None

    def admin(self, client: str, subject: str = "+") -> str:
        """Where an administrator asks for changes of the agent itself: of its models, with the subject `model`."""
        return f"{self.root}/agents/{self.agent}/admin/{subject}/{client}"

    def parse_admin(self, topic: str) -> Asked | None:
        """Return what an administrator asks of us; None for another topic."""
        own = f"{self.root}/agents/{self.agent}/admin/"
        levels = topic.removeprefix(own).split("/") if topic.startswith(own) else []
        return Asked(levels[0], levels[1]) if len(levels) == 2 else None

    def inbox_root(self, client: str) -> str:
        """The one response topic a requester may name."""
        return f"{self.root}/clients/{client}/inbox"

    def inbox(self, client: str, job_id: str, leaf: str) -> str:
        """Where a requester is answered; `leaf` is `status`, `chunk` or `result`."""
        return f"{self.root}/clients/{client}/inbox/{self.agent}/{job_id}/{leaf}"

    def lane(self, topic: str) -> str:
        """Return with which others what we publish on a topic takes turns: with those to one requester; see rota.py."""
        inboxes, jobs = f"{self.root}/clients/", self.event("jobs/")
        if topic.startswith(inboxes):
            return inboxes + topic.removeprefix(inboxes).split("/", 1)[0]
        return jobs if topic.startswith(jobs) else ""

    def event(self, leaf: str) -> str:
        """Where the agent tells of itself: `presence`, `info`, `decision`, `telemetry`."""
        return f"{self.root}/agents/{self.agent}/evt/{leaf}"

    def watch(self, name: str) -> str:
        """Where a rule's answers go that names no topic; apart from events, which never hold a text."""
        return f"{self.root}/agents/{self.agent}/watch/{name}"

    def job_event(self, job_id: str) -> str:
        """Where monitors see a job's states."""
        return f"{self.root}/agents/{self.agent}/evt/jobs/{job_id}/status"
