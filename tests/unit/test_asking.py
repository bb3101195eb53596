"""A test prompt from the screen of a fleet: what is shown of its answer, and what becomes of the one before."""

import pytest
from fakes import request

from edge_agent.base.errors import Code
from edge_agent.cli import asking
from edge_agent.cli.asking import SENT, TEXT_MAX, Asking
from edge_agent.client.handle import Handle, JobRejectedError
from edge_agent.client.placement import Placement
from edge_agent.mqtt.access import Access
from edge_agent.protocol.payloads import Chunk, Result, Status

KNOWN = {"agent": "edge-01", "job_id": "job-1"}


class Client:
    """What a test prompt is sent through; keeps the jobs, and which of them were canceled."""

    def __init__(self):
        self.jobs, self.canceled = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def submit(self, agent, **fields):
        self.jobs.append(
            Handle(
                placement=Placement(agent, None, ends_s=fields["ttl_s"]),
                request=request(),
                payload=b"",
                cancel=self.canceled.append,
            )
        )
        return self.jobs[-1]


def chunk(text, *, attempt=1, seq=0):
    return Chunk(**KNOWN, attempt=attempt, seq=seq, text=text, tokens=1)


def result(text):
    return Result(**KNOWN, state="succeeded", attempt=1, text=text, model="m", agent_version="0.1.0", metadata={})


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(asking, "EdgeClient", lambda *_access, **_names: made)
    return made


@pytest.fixture
def asked(client):
    """A prompt that was sent."""
    with Asking(Access("127.0.0.1", 1883, client_id="test"), name="tester", root="edge/v1") as made:
        made.ask("edge-01", "Who are you?")
        yield made


def test_an_answer_is_shown_as_it_comes_and_begins_anew_with_the_job(asked, client):
    assert not asked.attend()
    (job,) = client.jobs
    job.put(Status(**KNOWN, state="running", state_seq=2, attempt=1))
    job.put(chunk("I am"))
    assert asked.attend()
    assert (asked.state, asked.text) == ("running", "I am")
    job.put(chunk("A", attempt=2))
    job.put(chunk(" model", attempt=2, seq=1))
    assert asked.attend()
    assert asked.text == "A model"
    job.put(end := result("A model."))
    job.finish(end, None)
    assert asked.attend()
    assert asked.text == "A model."
    assert not asked.attend()


@pytest.mark.parametrize(
    "said",
    [(chunk("x" * (TEXT_MAX - 1)), chunk("xxx", seq=1)), (result("x" * (TEXT_MAX + 9)),)],
    ids=["pieces", "whole"],
)
def test_what_is_kept_of_an_answer_has_an_end(asked, client, said):
    (job,) = client.jobs
    for update in said:
        job.put(update)
    assert asked.attend()
    assert asked.text == "x" * TEXT_MAX


def test_a_prompt_cancels_the_one_before_unless_that_has_ended(asked, client):
    asked.ask("edge-02", "And you?")
    first, second = client.jobs
    assert client.canceled == [first]
    assert (asked.agent, asked.text, asked.state) == ("edge-02", "", SENT)
    second.finish(result(""), None)
    asked.ask("edge-02", "Once more?")
    assert client.canceled == [first]


def test_a_refusal_is_said(asked, client):
    client.jobs[0].finish(None, JobRejectedError(Code.QUEUE_FULL, "the queue is full"))
    assert asked.attend()
    assert asked.state == "rejected: queue_full: the queue is full"
