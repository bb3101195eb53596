"""docs/protocol.md is what people implement clients from: it names what the code has."""

import re
from pathlib import Path

import pytest

from edge_agent.base.errors import POOL_RETRYABLE, RETRYABLE, Code
from edge_agent.protocol.acl import AgentRole, Fleet, rights
from edge_agent.protocol.topics import Command, Topics

TEXT = (Path(__file__).parents[2] / "docs/protocol.md").read_text(encoding="utf-8")
TOPICS = Topics("{root}", "{agent}")


@pytest.mark.parametrize("code", Code)
def test_every_code_stands_there_with_whether_it_may_be_tried_again(code):
    (row,) = re.findall(rf"^\| `{code}` \|[^|]*\| ([a-z ]+) \|$", TEXT, re.MULTILINE)
    assert row == ("yes" if code in RETRYABLE else "in a pool" if code in POOL_RETRYABLE else "no")


@pytest.mark.parametrize(
    "topic",
    [
        *(TOPICS.command(command, "{client}") for command in Command),
        *(TOPICS.pool_command("{pool}", command, "{client}") for command in (Command.JOB, Command.CANCEL)),
        TOPICS.admin("{client}", "model"),
        *(TOPICS.inbox("{client}", "{job_id}", leaf) for leaf in ("status", "chunk", "result")),
        *(TOPICS.event(leaf) for leaf in ("presence", "info", "decision", "telemetry")),
        TOPICS.job_event("{job_id}"),
        TOPICS.watch("{name}"),
    ],
)
def test_every_topic_stands_there(topic):
    assert f"| `{topic}` |" in TEXT


def test_the_rights_are_those_that_are_generated():
    fleet = Fleet("{root}", agents=[AgentRole("edge-01")], requesters=["me"], monitors=["watcher"], admins=["op"])
    shown = [re.sub(r"cmd/(job|cancel|status|image)/me", "cmd/+/me", each.filter) for each in rights(fleet, "me")]
    shown += [each.filter for user in ("watcher", "op") for each in rights(fleet, user)]
    assert not [each for each in shown if f"`{each}`" not in TEXT]
