"""Who may say and hear what: the rights that the protocol needs, as mosquitto's ACL file. PURE.

One block per user, nothing for everybody: patterns would give each name the rights of every role.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_agent.protocol.topics import KEPT, Command, Topics

REQUESTER_COMMANDS = (*Command, "image")
POOL_COMMANDS = (Command.JOB, Command.CANCEL)


@dataclass(frozen=True, slots=True)
class Right:
    """What a user may do with the topics of a filter: `read` what comes there, or `write` there."""

    access: Literal["read", "write"]
    filter: str


@dataclass(frozen=True, slots=True)
class AgentRole:
    """An agent, the pools it is in, and of its watches the filters it reads and the topics it answers on."""

    name: str
    pools: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everybody the broker shall know. One name may have several roles, and then has the rights of each."""

    root: str
    agents: Sequence[AgentRole] = ()
    requesters: Sequence[str] = ()
    monitors: Sequence[str] = ()
    admins: Sequence[str] = ()

    def users(self) -> tuple[str, ...]:
        """Return every name once, in order."""
        named = [agent.name for agent in self.agents]
        return tuple(dict.fromkeys([*named, *self.requesters, *self.monitors, *self.admins]))


def rights(fleet: Fleet, user: str) -> tuple[Right, ...]:
    """Return what a user needs for its roles, and nothing more."""
    found: list[Right] = []
    for agent in fleet.agents:
        if agent.name == user:
            found += _agent(fleet.root, agent)
    if user in fleet.requesters:
        found += _requester(fleet.root, user)
    if user in fleet.monitors:
        found += _monitor(fleet.root)
    if user in fleet.admins:
        found += _admin(fleet.root, user)
    return tuple(dict.fromkeys(found))


def _agent(root: str, agent: AgentRole) -> Iterator[Right]:
    topics = Topics(root, agent.name)
    yield Right("read", topics.commands)
    yield Right("read", topics.admin("+"))
    for pool in agent.pools:
        for command in POOL_COMMANDS:
            yield Right("read", f"{root}/pools/{pool}/{command}/+")
    for leaf in ("presence", *KEPT):
        yield Right("read", topics.event(leaf))
    yield Right("write", topics.event("#"))
    yield Right("write", topics.inbox("+", "+", "+"))
    if agent.reads:
        yield Right("write", topics.watch("+"))
    for each in agent.reads:
        yield Right("read", each)
    for each in agent.writes:
        yield Right("write", each)


def _requester(root: str, name: str) -> Iterator[Right]:
    anybody = Topics(root, "+")
    for command in REQUESTER_COMMANDS:
        yield Right("write", f"{root}/agents/+/cmd/{command}/{name}")
    for command in POOL_COMMANDS:
        yield Right("write", f"{root}/pools/+/{command}/{name}")
    yield Right("read", f"{anybody.inbox_root(name)}/#")
    yield Right("read", anybody.event("presence"))
    yield Right("read", anybody.event("info"))


def _monitor(root: str) -> Iterator[Right]:
    yield Right("read", Topics(root, "+").event("#"))


def _admin(root: str, name: str) -> Iterator[Right]:
    anybody = Topics(root, "+")
    yield Right("write", anybody.admin(name))
    yield Right("read", f"{anybody.inbox_root(name)}/#")
    yield Right("read", anybody.event("#"))


def render(fleet: Fleet) -> str:
    """Return the ACL file, a block per user."""
    lines = ["# Written by edge-agent acl. A user without a block may do nothing."]
    for user in fleet.users():
        lines += ["", f"user {user}"]
        lines += [f"topic {right.access} {right.filter}" for right in rights(fleet, user)]
    return "\n".join(lines) + "\n"
