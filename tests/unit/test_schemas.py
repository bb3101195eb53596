"""The JSON Schemas: generated, shipped, and true of everything that is published."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import ANSWER, ENGINE_DIED, Time, accept, claim, machine, request
from jsonschema import Draft202012Validator, ValidationError

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.health.birth import decision_report
from edge_agent.health.condition import Condition
from edge_agent.jobs.job import JobState, Outcome, PromptTokensDetails, Timings, Usage
from edge_agent.models import catalogue
from edge_agent.models.choose import choose
from edge_agent.models.provision import wanted
from edge_agent.models.runtimes import presumed
from edge_agent.protocol import payloads
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.json_schemas import schemas, write_schemas
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import (
    EngineReading,
    Info,
    JobRef,
    Limits,
    MachineInfo,
    Presence,
    ServedModel,
    Telemetry,
)
from edge_agent.protocol.topics import Topics
from edge_agent.serving.presence import Announcer
from edge_agent.settings.load import ServeSection

SPEECH = Speech(Topics("edge/v1", "edge-01"))
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in schemas().items()}


def check(name, payload):
    VALIDATORS[name].validate(json.loads(payload))


@pytest.fixture
def job(tmp_path):
    with Time().queue(tmp_path) as queue:
        accept(queue, metadata={"line": {"number": 3}})
        return claim(queue)


def test_the_shipped_files_are_what_is_generated(tmp_path):
    """Mended with `python -m edge_agent.protocol.json_schemas edge_agent/protocol/schemas`."""
    write_schemas(tmp_path)
    shipped = resources.files(payloads.__package__).joinpath("schemas")
    generated = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert {file.name: file.read_text(encoding="utf-8") for file in shipped.iterdir()} == generated


@pytest.mark.parametrize("name", schemas())
def test_every_schema_is_one_and_closed(name):
    """Each is valid by the draft it names and refuses fields it does not know."""
    Draft202012Validator.check_schema(schemas()[name])
    assert not VALIDATORS[name].is_valid({"job_id": "a", "unknown": 1})


def test_what_is_said_of_a_job_validates(job):
    """Its states, text, results with and without an answer, events and refusals."""
    full = ANSWER.model_copy(
        update={
            "usage": Usage(
                prompt_tokens=18,
                completion_tokens=6,
                total_tokens=24,
                prompt_tokens_details=PromptTokensDetails(cached_tokens=12),
            ),
            "timings": Timings(queue_ms=3.1, total_ms=262.0),
            "backend": "onnx",
            "device": "cpu",
        }
    )
    answered = replace(job, state=JobState.SUCCEEDED, outcome=full)
    failed = replace(job, state=JobState.FAILED, outcome=Outcome(error=ENGINE_DIED))
    refusal = EdgeAgentError(Code.QUEUE_FULL, "the queue is full", retry_after_s=3.0)
    check("status", SPEECH.status(job, position=1, eta_s=2.0, tokens=3).payload)
    check("status", SPEECH.rejection("line-3", "unreadable", refusal, Inbound("t", b"")).payload)
    check("chunk", SPEECH.chunk(job, seq=0, text="The pump", tokens=2).payload)
    for each in (answered, failed):
        check("status", SPEECH.status(each).payload)
        check("result", SPEECH.result(each, packet_bytes_max=None).payload)
        check("result", SPEECH.result(each, packet_bytes_max=800).payload)
        check("job-event", SPEECH.event(each).payload)


def test_what_is_said_of_the_agent_validates():
    """Birth, will and farewell as the announcer says them; telemetry with and without readings."""
    info = Info(
        agent="edge-01",
        protocol=1,
        version="0.1.0",
        boot_id="b",
        conn_seq=1,
        machine=MachineInfo(architecture="x86_64", physical_cores=2),
        models=(ServedModel(name="phi", state="ready", backend="onnx", context_tokens=4096, parallel=2),),
        limits=Limits(
            payload_bytes=131_072, packet_bytes=2**23, image_bytes=2**24, queue_jobs=10, queue_bytes=10, ttl_s=60.0
        ),
    )
    serve = ServeSection(name="phi", model="phi-3.5-mini")
    decided = choose(
        wanted(serve, images_bytes=0),
        machine=machine(8),
        catalogue=catalogue.read(),
        runtimes=presumed(machine(8)),
    )
    given = ServeSection(name="ours", path=Path("/models/ours"))
    decision = decision_report((serve, given), {"phi": decided}, agent="edge-01", boot_id="b")
    said = []
    announcer = Announcer(
        Topics("edge/v1", "edge-01"),
        boot_id="b",
        tag="tag",
    )
    announcer.on_said.connect(said.append)
    report = SimpleNamespace(
        condition=lambda: Condition("degraded", ("the disk is full",)),
        describe=lambda _conn_seq: info,
        decisions=lambda: decision,
    )
    said.append(announcer.will(1))
    announcer.birth(1, report)
    announcer.farewell("stopped")
    assert [each.topic.rsplit("/", 1)[1] for each in said] == ["presence", "presence", "info", "decision", "presence"]
    for each in said:
        check(each.topic.rsplit("/", 1)[1], each.payload)
    bare = Telemetry(agent="edge-01", version="0.1.0", boot_id="b", uptime_s=1.0, health="ready")
    reading = EngineReading(model="phi", state="ready", running=1, anonymous_bytes=5)
    check("telemetry", bare.encode())
    check("telemetry", bare.model_copy(update={"engines": (reading,), "queue": {"queued": 3}}).encode())


@pytest.mark.parametrize("payload", [Presence, Telemetry, Info])
def test_what_cannot_be_read_is_absent(payload):
    """No optional field is required, so that absent never has to be written as null or 0."""
    optional = {name for name, field in payload.model_fields.items() if not field.is_required()}
    assert optional.isdisjoint(payload.model_json_schema(mode="serialization").get("required", ()))


def test_a_request_validates_as_it_may_be_sent():
    """What requesters send, in the documented spelling; what the agent would refuse by shape does not validate."""
    image = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    body = {"job_id": "a", "messages": [{"role": "user", "content": content}], "stop": ["\n\n"], "ttl_s": 60}
    VALIDATORS["job"].validate(body)
    check("job", request(seed=7, priority=9, metadata={"line": "3"}).to_json())
    check("cancel", JobRef(job_id="a").model_dump_json())
    for fault in ({"max_tokens": 0}, {"job_id": "a b"}, {"temprature": 1}, {"stop": {}}):
        with pytest.raises(ValidationError):
            VALIDATORS["job"].validate(body | fault)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_schema_of_a_job_takes_every_spelling_that_is_taken(name):
    Draft202012Validator(schemas()["job"]).validate({"job_id": "a", "prompt": "x", name: 3})
