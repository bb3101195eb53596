"""Agents without engines: what they say of jobs, and that their machines are like machines."""

import json
import random

import pytest
from fakes import request
from jsonschema import Draft202012Validator
from running import check_schema

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.json_schemas import schemas
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.topics import CLIENT, Asked, Topics
from edge_agent.simulator import jobs
from edge_agent.simulator.jobs import SimulatedJobs
from edge_agent.simulator.machine import MAKES, SMALL, SimulatedMachine, decided
from edge_agent.simulator.run import AGENTS_MAX, makes, names

TOPICS = Topics("edge/v1", "sim-001")
IMAGE = {"type": "image_sha256", "sha256": "0" * 64}


class Desk:
    """The errands of one agent, what it said, and a clock that runs what is due as it is moved."""

    def __init__(self, *, make=MAKES[0], token_s=0.0):
        self.now_s, self.said, self.due = 0.0, [], []
        self.simulated_jobs = SimulatedJobs(
            Speech(TOPICS),
            pretence=SimulatedMachine(make, random.Random(1)),
            token_s=token_s,
            say=self.said.append,
            do=lambda after_s, act: self.due.append((self.now_s + after_s, act)),
            now_s=lambda: self.now_s,
        )

    def ask(self, command, body, client="line-3", **fields):
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        topic = TOPICS.command(command, client)
        self.simulated_jobs.take(Asked(command, client), Inbound(topic, payload, **fields))

    def job(self, job_id="job-1", **fields):
        self.ask("job", request(job_id, **fields).to_json().encode())

    def pass_s(self, seconds):
        end_s = self.now_s + seconds
        while ready := [each for each in self.due if each[0] <= end_s]:
            first = min(ready, key=lambda each: each[0])
            self.due.remove(first)
            self.now_s = first[0]
            first[1]()
        self.now_s = end_s

    def of(self, leaf, job_id="job-1"):
        found = [each for each in self.said if each.topic.endswith(f"inbox/sim-001/{job_id}/{leaf}")]
        return [json.loads(each.payload) for each in found]

    def states(self, job_id="job-1"):
        return [body["state"] for body in self.of("status", job_id)]


def test_a_job_is_accepted_run_and_answered_as_the_protocol_says():
    desk = Desk(token_s=0.1)
    desk.job(max_tokens=8)
    desk.pass_s(5.0)
    assert desk.states() == ["queued", "running", "succeeded"]
    chunks, (result,) = desk.of("chunk"), desk.of("result")
    assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) > 1
    assert "".join(chunk["text"] for chunk in chunks) == result["text"] != ""
    assert result["usage"]["completion_tokens"] == sum(chunk["tokens"] for chunk in chunks) == 8
    assert result["last_seq"] == chunks[-1]["seq"]
    for each in desk.said:
        check_schema(each.topic, json.loads(each.payload))


def test_a_repeat_is_answered_and_never_run_twice():
    desk = Desk()
    desk.job()
    desk.job()
    assert desk.states() == ["queued", "running", "succeeded", "succeeded"]
    assert len(desk.of("result")) == 2
    assert desk.simulated_jobs.counts["accepted"] == 1
    with pytest.raises(EdgeAgentError) as refused:
        desk.job(max_tokens=3)
    assert refused.value.code is Code.DUPLICATE_ID


def test_jobs_beyond_the_lanes_wait_by_priority():
    desk = Desk(token_s=1.0)
    for number in range(2):
        desk.job(f"first-{number}", max_tokens=4)
    desk.job("later", max_tokens=4)
    desk.job("urgent", max_tokens=4, priority=9)
    desk.job("stale", max_tokens=4, priority=0, ttl_s=2)
    assert desk.states("urgent") == ["queued"]
    desk.pass_s(30.0)
    assert desk.states("urgent") == desk.states("later") == ["queued", "running", "succeeded"]
    assert desk.states("stale") == ["queued", "expired"]
    order = [each.topic.split("/")[-2] for each in desk.said if b'"running"' in each.payload and "inbox" in each.topic]
    assert order == ["first-0", "first-1", "urgent", "later"]


def test_a_cancel_ends_a_job_and_the_end_of_all_ends_every_one():
    desk = Desk(token_s=1.0)
    for name in ("job-1", "job-2", "job-3"):
        desk.job(name)
    desk.pass_s(3.0)
    desk.ask("cancel", {"job_id": "job-1"})
    desk.ask("status", {"job_id": "job-1"})
    assert desk.states()[-2:] == ["canceled", "canceled"]
    assert desk.of("result")[0]["text"].startswith("This answer")
    desk.simulated_jobs.close()
    for name in ("job-2", "job-3"):
        assert desk.of("result", name)[0]["error"]["code"] == "shutting_down"


@pytest.mark.parametrize(
    ("command", "body", "fields", "code"),
    [
        ("job", b"{}", {}, Code.BAD_REQUEST),
        ("job", {"job_id": "j", "prompt": "x", "model": "other"}, {}, Code.UNKNOWN_MODEL),
        ("job", {"job_id": "j", "messages": [{"role": "user", "content": [IMAGE]}]}, {}, Code.UNSUPPORTED),
        ("job", {"job_id": "j", "prompt": "x"}, {"retained": True}, Code.RETAINED),
        ("cancel", {"job_id": "nobody's"}, {}, Code.BAD_REQUEST),
        ("cancel", {"job_id": "none"}, {}, Code.UNKNOWN_JOB),
        ("status", {"job_id": "none"}, {}, Code.UNKNOWN_JOB),
        ("image", b"", {}, Code.UNSUPPORTED),
        ("dance", b"", {}, Code.UNSUPPORTED),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_code(command, body, fields, code):
    with pytest.raises(EdgeAgentError) as refused:
        Desk().ask(command, body, **fields)
    assert refused.value.code is code


def test_text_comes_in_few_chunks_however_fast_it_is_made():
    desk = Desk(token_s=0.01)
    desk.job(max_tokens=16)
    desk.pass_s(5.0)
    assert len(desk.of("chunk")) == 1


def test_a_messages_own_end_is_the_jobs():
    desk = Desk(token_s=1.0)
    for number in range(2):
        desk.job(f"first-{number}", max_tokens=4)
    desk.ask("job", request("brief", ttl_s=600).to_json().encode(), expiry_s=2.0)
    desk.pass_s(30.0)
    assert desk.states("brief") == ["queued", "expired"]


def test_a_canceled_job_says_nothing_more():
    desk = Desk(token_s=1.0)
    desk.job(max_tokens=8)
    desk.pass_s(2.0)
    desk.ask("cancel", {"job_id": "job-1"})
    told = len(desk.said)
    desk.pass_s(30.0)
    assert len(desk.said) == told


def test_queue_and_memory_have_an_end(monkeypatch):
    monkeypatch.setattr(jobs, "OPEN_MAX", 4)
    monkeypatch.setattr(jobs, "REMEMBERED_MAX", 6)
    desk = Desk(token_s=0.01)
    for number in range(40):
        try:
            desk.job(f"job-{number}", max_tokens=2)
        except EdgeAgentError as error:
            assert error.code is Code.QUEUE_FULL  # noqa: PT017 - some of them only
            desk.pass_s(10.0)
    assert len(desk.simulated_jobs._work) <= 6 + 4
    assert desk.simulated_jobs.counts["accepted"] > 20


def test_a_machine_that_is_too_small_is_unhealthy_and_takes_no_job():
    assert not decided(SMALL).candidates
    with pytest.raises(EdgeAgentError) as refused:
        Desk(make=SMALL).job()
    assert refused.value.code is Code.NO_FIT


@pytest.mark.parametrize("make", [*MAKES, SMALL], ids=lambda make: make.machine.board.model)
def test_readings_stay_within_what_such_a_machine_can_have(make):
    """For more than an hour; and what it runs is what the agent's own rules run there."""
    valid = Draft202012Validator(schemas()["telemetry"]["$defs"]["EngineReading"])
    pretence = SimulatedMachine(make, random.Random(3))
    tokens = 0
    for _ in range(120):
        pretence.pass_s(35.0)
        reading, engine = pretence.machine_reading(), pretence.engine_reading()
        assert 0 <= reading.cpu_percent <= 100
        assert 10 < reading.hottest_celsius <= make.limit_c
        assert 0 < reading.memory_available_bytes < make.machine.memory.total_bytes
        assert 0 <= engine.running <= (engine.lanes or 0)
        assert pretence.tokens >= tokens
        assert pretence.waiting <= 40
        valid.validate(json.loads(engine.model_dump_json(exclude_none=True)))
        tokens = pretence.tokens
    assert (tokens > 0) is (make is not SMALL)
    assert (pretence.engine.phase == "ready") is (make is not SMALL)


def test_one_seed_makes_one_fleet():
    def told(seed):
        pretence = SimulatedMachine(MAKES[0], random.Random(seed))
        for _ in range(20):
            pretence.pass_s(10.0)
        return pretence.machine_reading(), pretence.engine_reading()

    assert told(1) == told(1) != told(2)


def test_there_are_all_sorts_and_some_are_in_trouble():
    assert set(makes(AGENTS_MAX)) == {*MAKES, SMALL}
    assert all(CLIENT.match(name) for name in names(AGENTS_MAX, prefix="sim", first=99_000))
    assert names(2, prefix="sim", first=9) == ("sim-009", "sim-010")
