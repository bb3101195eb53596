"""Whatever a requester sends is answered with a code and a sentence, and the agent goes on.

FUZZ_CASES counts the cases straight into the intake, FUZZ_WIRE_CASES those through a broker and a daemon, and
FUZZ_SEED makes another run of either; a failure names the case by its number under its seed.
"""

import json
import os
import random
import re
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import paho.mqtt.client as mqtt
import pytest
from fakes import FakeRoster
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from running import AgentProcess, Listener, check_schema, requester, wait_for

from edge_agent.base.errors import Code
from edge_agent.engine.messages import Start, encode
from edge_agent.images.spool import Spool
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import GROUP_MAX, Store
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import PAYLOAD_BYTES_MAX, UNREADABLE, Inbound
from edge_agent.protocol.topics import CLIENT, MISNAMED, Topics, answerable
from edge_agent.running.attempt import Attempt
from edge_agent.serving import strangers
from edge_agent.serving.intake import Intake
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import ImagesSection, QueueSection, RequestersSection

CASES = int(os.environ.get("FUZZ_CASES", "20000"))
WIRE_CASES = int(os.environ.get("FUZZ_WIRE_CASES", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))

TOPICS = Topics("edge/v1", "edge-01")
SPEECH = Speech(TOPICS)
MARK = "S3CRET="
DIGITS = "314159265358979"
"""Planted wherever a value may stand; no answer may ever repeat one."""

RAW = re.compile(r'"<raw (.*?)>"')
"""JSON as it is, where a value is wanted that Python's encoder would not write."""

BODIES = (
    {"prompt": "How is the pump?"},
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How is it?"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is on the belt?"}]}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
        ]
    },
    {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:;base64,iVBORw0KGgo=", "detail": "low"}},
                    {"type": "image_sha256", "sha256": "9f" * 32},
                ],
            }
        ]
    },
)
OPTIONS = {
    "model": "phi",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "seed": 7,
    "repetition_penalty": 1.1,
    "stop": ["\n\n"],
    "response_format": {"type": "text"},
    "stream": False,
    "priority": 3,
    "ttl_s": 60,
    "timeout_s": 30,
    "max_attempts": 2,
    "metadata": {"line": "3"},
}
VALUES = (
    MARK,
    MARK + "-2",
    MARK,
    "",
    f"{MARK}\x00{MARK}",
    f"{MARK}\x1b[2J\r\n\x7f",
    f'<raw "{MARK}\\ud800">',
    f"{MARK}\N{PILE OF POO}\ufeff\u202e",
    MARK * 300,
    None,
    True,
    -1,
    0,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    int(DIGITS),
    f"<raw -{DIGITS}>",
    f"<raw {DIGITS}.5>",
    f"<raw {DIGITS}e400>",
    f"<raw {DIGITS * 20}>",
    f"<raw {DIGITS * 400}>",
    f"<raw 0{DIGITS}>",
    [],
    {},
    [MARK],
    {"type": MARK},
    {MARK.lower(): {"text": MARK}},
    [[[[[[[[[[[[MARK]]]]]]]]]]]],
    f"<raw {'[' * 150}{']' * 150}>",
    f"<raw {'[' * 5000}{']' * 5000}>",
    {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": MARK}}}}}}}}},
)
NAMES = ("job-1", "job_2", "a" * 64, "0198f3c2-7d5e-7abc-8def-000000000000")
BAD_NAMES = (f"{MARK}!", f"{MARK}/#", "", "a" * 65, f"{MARK}\x00", f"{MARK}\n", "job-1\n", f"é{MARK}", "+", "../../etc")
CLIENTS = ("line-3", "a", "0_-", "b" * 63)
BAD_CLIENTS = (MARK, "", "-a", "a" * 64, f"{MARK}\x00", "a b", "line-3\n", "é", "+", "#", f"line-3/{MARK}")
USER_PROPERTIES = (
    {},
    {"sha256": "9f" * 32, "part": "1", "parts": "2"},
    {"sha256": "9f" * 32, "part": "2", "parts": "2"},
    {"sha256": MARK},
    {"sha256": "9F" * 32, "part": DIGITS},
    {"parts": MARK, "else": DIGITS},
)
COMMANDS = ("job",) * 12 + ("cancel", "status", "image") * 2 + ("", "delete", "Job", "job\x00", "jobs/job")


DEFORMATIONS = (
    lambda _chance, payload, at: payload[:at],
    lambda chance, payload, at: payload[:at] + chance.randbytes(chance.randrange(1, 9)) + payload[at:],
    lambda chance, payload, _at: payload + b" " * (PAYLOAD_BYTES_MAX + chance.randrange(-1, 2) - len(payload)),
    lambda _chance, _payload, _at: b'{"job_id": "job-1", "prompt": "' + MARK.encode() * 30_000 + b'"}',
    lambda _chance, _payload, _at: b"",
    lambda chance, payload, _at: chance.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"\x00"]) + payload,
    lambda _chance, payload, _at: payload.decode().encode("utf-16"),
    lambda _chance, payload, _at: payload.replace(b"{", b'{"job_id": "S3CRET-1", "prompt": "S3CRET=", ', 1),
    lambda chance, _payload, _at: b"[" * chance.choice([1, 199, 201, 60_000]),
    lambda chance, _payload, _at: b'{"job_id":' * chance.choice([3, 250, 10_000]),
    lambda chance, _payload, _at: chance.choice([b"null", b"true", b"NaN", f'"{MARK}"'.encode(), b"[]", b"{}", b"{"]),
    lambda chance, _payload, _at: chance.randbytes(chance.randrange(1, 400)),
)
"""What makes of a payload no such message any more, or only just: from a source of chance, the payload, a place."""


@dataclass(frozen=True)
class Case:
    """A message; `field` is the one thing that is wrong with its body, if exactly one is."""

    inbound: Inbound
    field: str | None = None


class Fuzz:
    """Valid messages, damaged in every way a seed thinks of."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def one_in(self, chances):
        return self.random.randrange(chances) == 0

    def case(self):
        command = self.random.choice(COMMANDS)
        name = self.random.choice(BAD_NAMES if self.one_in(20) else [*NAMES, f"job-{self.random.randrange(10**6)}"])
        if command in ("cancel", "status"):
            body = {"job_id": name}
        else:
            body = {"job_id": name, "max_tokens": 4} | self.random.choice(BODIES)
            body |= {field: OPTIONS[field] for field in self.random.sample(sorted(OPTIONS), self.random.randrange(8))}
        body = deepcopy(body)
        field = "job_id" if name in BAD_NAMES else None
        if self.one_in(2):
            damaged = self.damage(body)
            field = damaged if field in (None, damaged) else None
        payload = RAW.sub(lambda found: json.loads(f'"{found[1]}"'), json.dumps(body)).encode()
        if self.one_in(4):
            payload, field = self.deform(payload), None
        return Case(self.envelope(command, payload), None if command == "image" else field)

    def damage(self, body):
        """Put a strange value somewhere; return the field of the body it stands in."""
        kind = self.random.randrange(5)
        if kind == 0:
            body["unknown_field"] = self.random.choice(VALUES)
            return "unknown_field"
        field = self.random.choice([*body, *(["max_completion_tokens"] if "max_tokens" not in body else [])])
        if kind == 1:
            body.pop(field, None)
            return "messages" if field == "prompt" else field
        if kind == 2 and isinstance(body.get(field), dict | list):
            self.plant(body[field])
        else:
            body[field] = self.random.choice(VALUES)
        return field

    def plant(self, container):
        """Replace or add something somewhere below a container."""
        places = list(container) if isinstance(container, dict) else list(range(len(container)))
        place = self.random.choice(places) if places else None
        if place is not None and isinstance(container[place], dict | list) and self.one_in(2):
            self.plant(container[place])
        elif isinstance(container, list):
            container.insert(place or 0, self.random.choice(VALUES))
        else:
            container[self.random.choice([place or "key", "extra"])] = self.random.choice(VALUES)

    def deform(self, payload):
        """Return bytes that are no such message any more, or only just."""
        return self.random.choice(DEFORMATIONS)(self.random, payload, self.random.randrange(len(payload) + 1))

    def envelope(self, command, payload):
        """Address a payload, with properties."""
        client = self.random.choice(BAD_CLIENTS if self.one_in(12) else CLIENTS)
        topic = f"{TOPICS.root}/agents/{TOPICS.agent}/cmd/{command}/{client}"
        inbox = TOPICS.inbox_root(client)
        return Inbound(
            topic=topic if not self.one_in(200) else self.random.choice(["", "a/b", topic + "/", topic[1:], MARK]),
            payload=payload,
            qos=self.random.choice([0, 1, 1, 1]),
            retained=self.one_in(30),
            expiry_s=self.random.choice([None, None, 1, 30, 2**32 - 1]),
            response_topic=self.random.choice([None] * 20 + [inbox] * 20 + ["", "a/#", inbox + "/", MARK, "edge/v1/+"]),
            correlation=self.random.choice([None, b"", b"c", b"\xff" * 64] * 9 + [b"c" * 65, MARK.encode() * 9_000]),
            traceparent=self.random.choice([None, "", "00-ab-cd-01"] * 12 + [MARK * 40, "\ufeff\u202e" * 100]),
            user=self.random.choice(USER_PROPERTIES),
        )


class Recorder:
    """Stands for outbox and link: keeps what is said to requesters between two acknowledgements."""

    def __init__(self):
        self.said = []
        self.answers = {}
        self.twice = []
        self.stored = {}

    def say(self, publication):
        self.said.append(publication)

    def answer(self, _queue, job):
        self.said.append(job)

    def ack(self, number):
        if number in self.answers:
            self.twice.append(number)
        self.answers[number] = self.said
        self.said = []

    def tell(self, changes):
        self.stored |= {(job.client, job.job_id): job for job in changes}


class LogOfNoValues:
    """A log that keeps what should not be in it."""

    def __init__(self):
        self.leaks = []

    def info(self, event, **fields):
        if MARK in repr(fields) or DIGITS in repr(fields):
            self.leaks.append((event, fields))

    def warning(self, event, *, topic, **fields):
        """Of a topic that is nearly ours, which is shown; nobody writes what he asks there."""
        assert topic
        self.info(event, **fields)


@pytest.fixture
def log(monkeypatch):
    leaky = LogOfNoValues()
    monkeypatch.setattr(strangers, "log", leaky)
    return leaky


def judge(case, said, stored):
    """Fail unless a message was answered as it deserves."""
    inbound = case.inbound
    asked = TOPICS.parse(inbound.topic)
    if asked is None or not answerable(asked.client):
        assert said == []
        return
    command, client = asked.command, asked.client
    assert len(said) <= 1
    if not said:
        # Taken in without a word: the store tells of a job by its row, and a cancel is obeyed or remembered.
        assert command in ("job", "cancel", "image")
        if command == "job":
            job = stored[client, json.loads(inbound.payload)["job_id"]]
            attempt = Attempt(job, stream=None, begun_s=0.0, deadline_s=0.0, progress_s=0.0, load_ms=0.0)
            if not job.unprepared:
                encode(Start(attempt.generation))
            result = SPEECH.result(job, packet_bytes_max=1024)
            check_schema(result.topic, json.loads(result.payload))
        return
    if not hasattr(said[0], "payload"):
        assert said[0].client == client
        return
    (rejection,) = said
    body = json.loads(rejection.payload)
    check_schema(rejection.topic, body)
    assert len(rejection.correlation or b"") <= 64
    assert len(rejection.traceparent or "") <= 128
    job_id = body["job_id"]
    assert rejection.topic == f"edge/v1/clients/{client}/inbox/edge-01/{job_id}/status"
    assert (body["state"], body["state_seq"]) == ("rejected", 0)
    assert job_id == UNREADABLE or re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job_id)
    message = body["error"]["message"]
    assert MARK not in message
    assert DIGITS not in message
    assert message.isprintable()
    assert 10 < len(message) < 1000
    if not CLIENT.match(client):
        assert message == MISNAMED
    elif body["error"]["code"] == Code.BAD_REQUEST and not re.match("CorrelationData|traceparent", message):
        assert case.field is None or case.field in message or "not valid JSON" in message


@pytest.mark.timeout(3600)
def test_every_message_gets_one_acknowledgement_and_an_answer_without_its_values(
    tmp_path, log, record_testsuite_property
):
    """Each of thousands of damaged messages is acknowledged once, and answered by field and never by value."""
    recorder, fuzz = Recorder(), Fuzz(SEED)
    spool = Spool(tmp_path / "images", quota_bytes=2**30, requester_quota_bytes=2**30, image_bytes=2**20)
    spool.open()
    store = Store(Queue(tmp_path / "queue.db"), keep_finished_s=86_400.0, keep_finished_jobs=100_000)
    store.on_changed.connect(recorder.tell)
    taking = Intake(
        strangers=Strangers(lambda: 0.0),
        topics=TOPICS,
        speech=SPEECH,
        settings=QueueSection(high_water_jobs=1_000_000, high_water_bytes=2**40),
        requesters=RequestersSection(),
        store=store,
        outbox=recorder,
        images=ImagesSection(),
        spool=spool,
        engines=FakeRoster("phi", images=2),
        pace=Pace(),
        free_bytes=lambda: 2**40,
    )
    store.start()
    codes = {}
    try:
        for first in range(0, CASES, GROUP_MAX):
            cases = {number: fuzz.case() for number in range(first, min(first + GROUP_MAX, CASES))}
            recorder.answers.clear()
            for number, case in cases.items():
                taking.receive(case.inbound, partial(recorder.ack, number))
            store.ask(lambda _queue: None)
            assert recorder.answers.keys() == cases.keys()
            for number, case in cases.items():
                said = recorder.answers[number]
                try:
                    judge(case, said, recorder.stored)
                except Exception as error:
                    raise AssertionError(f"case {number} of seed {SEED}: {case} was answered {said}") from error
                code = next(
                    (json.loads(each.payload)["error"]["code"] for each in said if hasattr(each, "payload")), ""
                )
                codes[code] = codes.get(code, 0) + 1
    finally:
        store.stop()
    assert recorder.twice == []
    assert log.leaks == []
    expected = {"", "bad_request", "payload_too_large", "retained", "bad_response_topic", "duplicate_id"}
    assert expected | {"unknown_job", "unsupported", "bad_image"} <= codes.keys(), codes
    record_testsuite_property("fuzz_answers", codes)


PUBLISHER_WINDOW = 200
"""Messages under way at once, fewer than the broker keeps for a subscriber (10,000)."""


class Publisher:
    """Publishes cases as any MQTT 5 client may; QoS 1, so that none is lost on the way to the broker."""

    def __init__(self, broker):
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "fuzzer", protocol=mqtt.MQTTv5)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        self.sent = []

    def publish(self, inbound, **extra):
        properties = Properties(PacketTypes.PUBLISH)
        values = {
            "MessageExpiryInterval": inbound.expiry_s,
            "ResponseTopic": inbound.response_topic,
            "CorrelationData": inbound.correlation,
        }
        for name, value in (values | extra).items():
            if value is not None:
                setattr(properties, name, value)
        if inbound.traceparent is not None:
            properties.UserProperty = ("traceparent", inbound.traceparent)
        self.sent.append(
            self.client.publish(inbound.topic, inbound.payload, qos=1, retain=inbound.retained, properties=properties)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.client.disconnect()
        self.client.loop_stop()
        self.client._reset_sockets()  # or paho leaves them to the garbage collector, which warns


def publishable(inbound):
    """Whether a broker lets a requester publish this at all."""
    asked = TOPICS.parse(inbound.topic)
    return asked is not None and CLIENT.match(asked.client) and "\x00" not in inbound.topic


EXTRAS = (
    {},
    {},
    {"UserProperty": ("a\ufeff", "\ufeff")},
    {"UserProperty": [("", ""), ("traceparent", "\ufeff"), ("traceparent", "\U0010fffd")]},
    {"UserProperty": [(f"name-{number}", "v" * 100) for number in range(100)]},
    {"ContentType": "\ufeff" + "x" * 5000},
    {"PayloadFormatIndicator": 1},
    {"ResponseTopic": "edge/v1/\ufeff"},
)
"""Properties that MQTT allows and a daemon must live with."""


@pytest.mark.broker
@pytest.mark.engine
@pytest.mark.timeout(3600)
def test_a_daemon_answers_everything_on_one_connection_and_works_on(
    broker, tmp_path, tiny_model, record_testsuite_property
):
    """Damaged messages through a real broker are each answered; the daemon keeps its connection and works on."""
    models = [{"name": "phi", "path": str(tiny_model), "parallel": 2, "context_tokens": 256}]
    fuzz = Fuzz(SEED)
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models) as agent,
        Listener(broker, "edge/v1/clients/+/inbox/#") as inboxes,
        Publisher(broker) as publisher,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")

        def answered():
            return {inbound.topic.split("/")[3] for inbound, _ in list(inboxes.messages)}

        expected = set()
        for number in range(WIRE_CASES):
            inbound = fuzz.case().inbound
            if not publishable(inbound):
                continue
            # Each case is a requester of its own, so that its answer can be told from others'.
            command = TOPICS.parse(inbound.topic).command
            client = f"fuzz-{number}"
            response_topic = inbound.response_topic and re.sub(
                "/clients/[^/]*/", f"/clients/{client}/", inbound.response_topic
            )
            topic = f"{TOPICS.root}/agents/{TOPICS.agent}/cmd/{command}/{client}"
            publisher.publish(
                replace(inbound, topic=topic, response_topic=response_topic), **fuzz.random.choice(EXTRAS)
            )
            if command != "cancel" and inbound.expiry_s != 1:
                expected.add(client)
            if number % PUBLISHER_WINDOW == 0:
                wait_for(lambda: expected <= answered(), f"an answer to each up to case {number} of seed {SEED}")
        wait_for(
            lambda: expected <= answered(),
            f"an answer to each case of seed {SEED}",
        )
        assert all(info.is_published() for info in publisher.sent)
        with requester(broker) as client:
            result = client.submit("edge-01", prompt="How is the pump?", max_tokens=4, priority=9).result(60)
        assert result.state == "succeeded"
        assert agent.process.poll() is None
        assert len(agent.said("link.up")) == 1
        assert agent.said("link.down") == agent.said("thread.crashed") == agent.said("engine.lost") == []
        assert MARK not in agent.log.read_text()
    record_testsuite_property("fuzz_answered_over_the_wire", len(expected))
