"""Bytes to types and types to bytes: whatever comes, the sender learns the field and never reads the value back."""

import functools
import json
from dataclasses import replace
from datetime import datetime

import pytest
from fakes import ANSWER, Time, accept, claim
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.job import Failure, JobState, Outcome
from edge_agent.jobs.request import Request
from edge_agent.protocol import messages
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import (
    PAYLOAD_BYTES_MAX,
    UNREADABLE,
    Inbound,
    decode_ref,
    decode_request,
    faults,
    readable_job_id,
)
from edge_agent.protocol.topics import Topics

MARK = "S3CRET"
NESTED = functools.reduce(lambda inner, _: {"not": inner}, range(40), {"const": MARK})
"""Planted as a value; no sentence may ever contain it."""
USER = {"role": "user", "content": "x"}
SPEECH = Speech(Topics("edge/v1", "edge-01"))


@pytest.fixture
def job(tmp_path):
    """A job that runs."""
    with Time().queue(tmp_path) as queue:
        accept(queue, metadata={"line": "3"})
        return claim(queue)


def refused(payload, decode=decode_request):
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    with pytest.raises(EdgeAgentError) as caught:
        decode(body)
    return caught.value


@pytest.mark.parametrize(
    ("bounds", "most"),
    [
        ({"max_tokens": None, "max_completion_tokens": 8}, 8),
        ({"max_tokens": 8, "max_completion_tokens": None}, 8),
        ({"max_tokens": None, "max_completion_tokens": None}, 256),
        ({"max_completion_tokens": None}, 256),
    ],
)
def test_of_two_names_of_the_token_bound_one_may_be_null(bounds, most):
    body = {"job_id": "j", "prompt": 'is "max_tokens" or "max_completion_tokens" meant? ü'} | bounds
    asked = decode_request(json.dumps(body).encode())
    assert (asked.max_tokens, asked.prompt) == (most, body["prompt"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens: must be greater than or equal to 1"),
        ({"max_tokens": MARK}, "max_tokens: must be a valid integer"),
        ({"max_completion_tokens": MARK}, "max_completion_tokens: must be a valid integer"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens: is another name of max_tokens; give one of them",
        ),
        ({"temprature": MARK}, "temprature: is no field of this message"),
        ({"temperature": MARK}, "temperature: must be a valid number"),
        ({"job_id": MARK + "!"}, "job_id: must match pattern"),
        ({"job_id": None}, "job_id: must be a valid string"),
        ({"stream": MARK}, "stream: must be a valid boolean"),
        ({"stop": {MARK: MARK}}, "stop: must be a string or a list"),
        ({"stop": [MARK * 100]}, "stop.0: must have at most 256 characters"),
        ({"metadata": MARK}, "metadata: must be an object"),
        ({"messages": MARK}, "messages: must be a valid array"),
        ({"prompt": None, "messages": [USER | {"role": MARK}]}, "messages.0.role: must be 'system', 'user' or"),
        (
            {"prompt": None, "messages": [USER | {"content": {MARK: 1}}]},
            "messages.0.content: must be a string or a list",
        ),
        (
            {"prompt": None, "messages": [USER | {"content": [{"type": MARK}]}]},
            "messages.0.content.0.type: must be one of",
        ),
        ({"prompt": None, "messages": [USER | {"content": [MARK]}]}, "messages.0.content.0: must be"),
        (
            {"prompt": None, "messages": [USER | {"content": [{"type": "image_url", "image_url": [MARK]}]}]},
            "messages.0.content.0.image_url.image_url: must be a string or an object",
        ),
        (
            {"prompt": None, "messages": [USER | {"content": [{"type": "image_sha256", "sha256": MARK}]}]},
            "messages.0.content.0.image_sha256.sha256: must match pattern",
        ),
        ({"response_format": {"type": MARK}}, "response_format.type: must be 'text'"),
        ({"response_format": {"type": "regex"}}, "response_format: regex is missing"),
        ({"response_format": {"type": "json_schema"}}, "response_format: schema is missing"),
        ({"response_format": {"type": "text", "regex": MARK}}, "response_format: regex does not go with this type"),
        (
            {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {"const": MARK}}}},
            "response_format: give the schema once",
        ),
        ({"response_format": {"type": "json_object", "schema": {"const": MARK * 9000}}}, "at most 32768 bytes"),
        ({"response_format": {"type": "json_object", "schema": NESTED}}, "the schema nests deeper than 32 levels"),
        ({"response_format": {"type": "regex", "regex": MARK * 600}}, "response_format.regex: must"),
        ({"messages": [USER | {"content": MARK}]}, "messages: give either messages or prompt"),
        ({"metadata": {"a": {"b": [[[[[[[[MARK]]]]]]]]}}}, "metadata: nests deeper than 8 levels"),
        ({"metadata": {"a": MARK * 1000}}, "metadata: must be at most 4096 bytes"),
        ({"ttl_s": [MARK]}, "ttl_s: must be a valid number"),
    ],
)
def test_a_refusal_names_the_field_and_never_the_value(fields, sentence):
    error = refused({"job_id": "a", "prompt": "x"} | fields)
    assert error.code is Code.BAD_REQUEST
    assert sentence in error.message
    assert MARK not in error.message


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b'{"job_id":', b"\xff\xfe", b'{"job_id": "\\ud800"}', MARK.encode(), b"[" * 100_000, b'{"a":"S3CRET'],
)
def test_what_is_no_json_is_said_to_be_none(payload):
    error = refused(payload)
    assert (error.code, error.message) == (Code.BAD_REQUEST, "the payload is not valid JSON")


@pytest.mark.parametrize("payload", [[MARK], MARK, 7, None, True])
def test_json_of_another_kind_is_refused(payload):
    error = refused(payload)
    assert error.code is Code.BAD_REQUEST
    assert MARK not in error.message


def test_three_faults_are_told_and_the_rest_counted():
    error = refused({"job_id": "a", "prompt": "x", "a": 1, "b": 1, "c": 1, "d": 1, "e": 1})
    assert error.message.count("is no field") == 3
    assert error.message.endswith("; and 2 more")


def test_names_of_unknown_fields_are_shown_short_and_printable():
    """They are the sender's words: bounded, and without control characters."""
    error = refused({"job_id": "a", "prompt": "x", "\x1b[31m" + "y" * 200: 1})
    assert error.message == "?[31m" + "y" * 59 + ": is no field of this message"


def test_a_payload_over_the_bound_is_refused_unparsed():
    for decode in (decode_request, decode_ref):
        assert refused(b"[" * (PAYLOAD_BYTES_MAX + 1), decode).code is Code.PAYLOAD_TOO_LARGE


def test_a_reference_is_a_job_id_and_nothing_else():
    assert decode_ref(b'{"job_id":"a-1"}').job_id == "a-1"
    assert "job_id" in refused({}, decode_ref).message
    assert "why: is no field" in refused({"job_id": "a", "why": MARK}, decode_ref).message


@pytest.mark.parametrize(
    ("payload", "job_id"),
    [
        (b'{"job_id":"a-1","max_tokens":0}', "a-1"),
        (b'{"job_id":"a-1","job_id":"b-2"}', "b-2"),
        (b'{"job_id":"a/#"}', UNREADABLE),
        (b'{"job_id":7}', UNREADABLE),
        (b"{}", UNREADABLE),
        (b'["job_id"]', UNREADABLE),
        (b"\xff", UNREADABLE),
        (b'{"job_id":"a"', UNREADABLE),
        (b'{"job_id":"a","x":"' + b"x" * PAYLOAD_BYTES_MAX + b'"}', UNREADABLE),
    ],
)
def test_a_refused_request_is_answered_under_its_job_id_if_that_can_be_read(payload, job_id):
    assert readable_job_id(payload) == job_id


# Whatever comes

MARKED = st.recursive(
    st.sampled_from([MARK, None, True, 0, -1, 1e300, 10**30, "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "type", "url", "text"]), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from([*Request.model_fields, "max_completion_tokens", "role", "content", "unknown"])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "image_sha256", MARK])},
    optional={"text": MARKED, "image_url": MARKED, "sha256": MARKED, "detail": MARKED},
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": MARKED, "content": MARKED | st.lists(PARTS, max_size=2)}), max_size=2
)
BODIES = st.dictionaries(FIELDS, MARKED) | st.fixed_dictionaries({"job_id": MARKED, "messages": MESSAGES})


def only_ours(decode, payload):
    """Decode; return the sentence of a refusal, "" when there is none. Anything but EdgeAgentError fails the test."""
    try:
        decode(payload)
    except EdgeAgentError as error:
        return error.message
    return ""


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_refused(payload):
    only_ours(decode_request, payload)
    only_ours(decode_ref, payload)
    assert readable_job_id(payload)


@given(BODIES)
def test_no_refusal_ever_repeats_a_value(body):
    """Whatever stands in the fields, the sentence is about them and not of them."""
    payload = json.dumps(body).encode()
    assert MARK not in only_ours(decode_request, payload)
    assert MARK not in only_ours(decode_ref, payload)


@given(MARKED)
def test_faults_of_any_type_repeat_no_value(value):
    """Also the faults of types that no message has yet."""
    for kind in (int, float, bool, datetime, list[int], dict[str, int], set[str], tuple[int, str]):
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(tuple[kind, bool]).validate_json(json.dumps([value, 0]), strict=True)
        assert MARK not in faults(caught.value)


# What is said


def test_status_tells_state_and_place_and_echoes_what_came_with_the_job(job):
    said = SPEECH.status(replace(job, correlation=b"\x01", traceparent="00-ab"), position=3, eta_s=12.5)
    assert said.topic == "edge/v1/clients/line-3/inbox/edge-01/job-1/status"
    assert (said.qos, said.retain, said.expiry_s) == (1, False, 3600)
    assert (said.correlation, said.traceparent) == (b"\x01", "00-ab")
    assert json.loads(said.payload) == {
        "agent": "edge-01",
        "job_id": "job-1",
        "state": "running",
        "state_seq": 2,
        "attempt": 1,
        "queue_position": 3,
        "eta_s": 12.5,
    }


def test_a_rejection_says_why_and_when_to_come_back(job):
    error = EdgeAgentError(Code.QUEUE_FULL, "the queue is full", retry_after_s=4.0)
    said = SPEECH.rejection("line-3", "job-1", error, Inbound("t", b"", correlation=b"c", traceparent="00-ab"))
    body = json.loads(said.payload)
    assert (body["state"], body["state_seq"]) == ("rejected", 0)
    assert body["error"] == {
        "code": "queue_full",
        "message": "the queue is full",
        "retryable": True,
        "retry_after_s": 4.0,
    }
    assert (said.correlation, said.traceparent) == (b"c", "00-ab")


def test_monitors_are_told_the_code_and_never_any_text(job):
    failure = Failure.because(Code.MODEL_ERROR, MARK)
    outcome = Outcome(text=MARK, error=failure)
    said = SPEECH.event(replace(job, state=JobState.FAILED, outcome=outcome, metadata={"a": MARK}))
    assert said.topic == "edge/v1/agents/edge-01/evt/jobs/job-1/status"
    assert (said.qos, json.loads(said.payload)["code"]) == (0, "model_error")
    assert MARK.encode() not in said.payload


def ended(job, outcome=ANSWER, **fields):
    return replace(job, state=JobState.SUCCEEDED, outcome=outcome, **fields)


def test_the_result_carries_everything(job):
    said = SPEECH.result(ended(job), packet_bytes_max=None)
    body = json.loads(said.payload)
    assert (said.qos, said.expiry_s) == (1, 86_400)
    assert (body["text"], body["finish_reason"], body["last_seq"]) == ("The pump is off.", "stop", 2)
    assert (body["state"], body["attempt"], body["metadata"]) == ("succeeded", 1, {"line": "3"})
    assert "text_truncated" not in body


@pytest.mark.parametrize("text", ["x" * 300_000, "ü" * 100_000, "\n" * 100_000, "x" * 90_000 + "🐝\x01" * 30_000])
@pytest.mark.parametrize("packet_bytes_max", [1_024, 65_536])
def test_a_result_over_the_brokers_packet_size_is_cut_and_says_so(job, text, packet_bytes_max):
    """Topic, properties and payload fit together; what is left is the beginning, as much of it as fits."""
    said = SPEECH.result(ended(job, Outcome(text=text)), packet_bytes_max=packet_bytes_max)
    body = json.loads(said.payload)
    assert body["text_truncated"] is True
    assert text.startswith(body["text"])
    size = len(said.payload) + len(said.topic) + messages.HEADER_BYTES
    assert packet_bytes_max - 8 < size <= packet_bytes_max


def test_a_result_that_would_not_fit_even_without_text_loses_its_metadata(job):
    """A packet over the broker's limit would end the connection again and again."""
    metadata = {"a": "x" * 4000}
    said = SPEECH.result(ended(job, metadata=metadata), packet_bytes_max=2048)
    body = json.loads(said.payload)
    assert (body["text"], body["metadata"], body["text_truncated"]) == ("", {}, True)
