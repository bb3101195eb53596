"""One requester does its worst; another's job is answered all the same, and no engine is lost over it.

AGAINST_JOBS is how many messages each attack takes, AGAINST_ROUNDS how often all of them come. A failure names the
attack. Nothing is timed but by the patience of a busy machine; how long the other waited at most is in the report.
"""

import json
import os
import struct
import time
import zlib
from base64 import b64encode

import paho.mqtt.client as mqtt
import pytest
from running import PATIENCE_S, AgentProcess, requester

pytestmark = [pytest.mark.broker, pytest.mark.engine]

JOBS = int(os.environ.get("AGAINST_JOBS", "6"))
ROUNDS = int(os.environ.get("AGAINST_ROUNDS", "1"))
AHEAD_S = 2.0
"""What one of theirs may take that goes before the other's because of its priority."""
KNOWN = "You are the door keeper of the plant. Never tell anybody the door code. The door code is 7394."
"""How the other's prompts begin."""
SMALLEST = 5e-324
NUMBERS = (
    {"temperature": SMALLEST},
    {"temperature": 1.0, "repetition_penalty": SMALLEST},
    {"temperature": 2, "top_p": SMALLEST, "top_k": 1},
    {"repetition_penalty": 10},
    {"seed": 2**31 - 1, "temperature": 1e-310},
    {"stop": ["\0", "e", " ", "\N{PILE OF POO}"]},
)
SCHEMAS = (
    {"format": []},
    {"type": {}},
    {"type": "integer", "minimum": -(10**400)},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"enum": []},
    {"properties": {"a": {"pattern": "("}}},
)


def png(width, height):
    """Return an image that says it is so large, and has nothing in it."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b""), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PICTURES = (png(60_000, 60_000), png(0, 0), png(2**31 - 1, 1), b"GIF89a", b"\xff\xd8\xff", bytes(90_000))


def picture(number):
    url = f"data:;base64,{b64encode(PICTURES[number % len(PICTURES)]).decode()}"
    return {"content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]}


def schema(number):
    shape = {"name": "answer", "schema": SCHEMAS[number % len(SCHEMAS)]}
    return {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": shape}}


ATTACKS = {
    "numbers": lambda number: {"prompt": "x", "max_tokens": 8, **NUMBERS[number % len(NUMBERS)]},
    "schemas": schema,
    "deep": lambda number: {"prompt": "x", "response_format": f"<raw {'[' * 10_000 * (number + 1)}>"},
    "long prompts": lambda number: {"prompt": f"{number} " * 20_000},
    "long answers": lambda _number: {"prompt": "x", "max_tokens": 100_000, "priority": 9},
    "many words": lambda number: {"prompt": f"{number} " * 300, "max_tokens": 1, "priority": 9},
    "guesses": lambda number: {"messages": [{"role": "system", "content": KNOWN[: 20 + number]}], "max_tokens": 1},
    "penalties": lambda _number: {"prompt": KNOWN, "max_tokens": 4, "repetition_penalty": 1.5},
    "pictures": lambda number: {"messages": [{"role": "user", **picture(number)}]},
    "missing": lambda number: {
        "messages": [{"role": "user", "content": [{"type": "image_sha256", "sha256": f"{number:064x}"}]}]
    },
    "garbage": lambda number: bytes(range(number, 256)) * 100,
}
"""What a message of each says, by its number."""
AHEAD = ("long answers", "many words")
"""Those whose jobs have the highest priority: all of them go before the other's, as priorities are meant."""


class Attacker:
    """A program that has the rights of a requester and no scruples."""

    def __init__(self, broker):
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "mallory", protocol=mqtt.MQTTv5)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        self._jobs = 0

    def send(self, attack, number):
        """Send a job, under one of its own many names, and cancel each third at once."""
        self._jobs += 1
        name, job = f"mallory-{number % 5}", f"m{self._jobs}"
        body = ATTACKS[attack](number)
        if not isinstance(body, bytes):
            text = json.dumps({"job_id": job} | body)
            body = text.replace('"<raw ', "").replace('>"', "").encode()
        self._publish("job", name, body)
        if number % 3 == 2:
            self._publish("cancel", name, json.dumps({"job_id": job}))

    def leave(self, number):
        """Cancel whatever of an attack may still run."""
        for back in range(number):
            for own in range(5):
                self._publish("cancel", f"mallory-{own}", json.dumps({"job_id": f"m{self._jobs - back}"}))

    def _publish(self, command, name, body):
        self._client.publish(f"edge/v1/agents/edge-01/cmd/{command}/{name}", body, qos=1)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # or paho leaves them to the garbage collector, which warns


@pytest.mark.timeout(120 + ROUNDS * len(ATTACKS) * (5 + JOBS))
@pytest.mark.parametrize("model", ["tiny_model", "tiny_openvino_vision"])
def test_whatever_one_requester_does_another_is_answered(broker, tmp_path, request, model, record_testsuite_property):
    """By the very engine that was there before, and with the same words."""
    models = [
        {"name": "phi", "path": str(request.getfixturevalue(model)), "context_tokens": 1024, "parallel": 3},
    ]
    extra = "[requesters]\nmax_jobs = 50\nmax_bytes = 10_000_000\n"
    messages = [{"role": "system", "content": KNOWN}, {"role": "user", "content": "is the pump on?"}]
    longest_s = 0.0
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=extra) as agent,
        requester(broker, "bob") as bob,
        Attacker(broker) as attacker,
    ):
        agent.wait_said("engine.ready")
        (engine,) = agent.engines("edge_agent.engine.child")

        def answered(attack=None):
            patience_s = PATIENCE_S + AHEAD_S * JOBS * (attack in AHEAD)
            result = bob.submit("edge-01", messages=messages, max_tokens=8).result(patience_s)
            assert result.state == "succeeded", result.error
            return result.text

        text = answered()
        for attack in list(ATTACKS) * ROUNDS:
            for number in range(JOBS):
                attacker.send(attack, number)
            begun_s = time.monotonic()
            assert answered(attack) == text, attack
            longest_s = max(longest_s, time.monotonic() - begun_s)
            attacker.leave(JOBS)
            assert agent.engines("edge_agent.engine.child") == [engine], attack
        assert answered() == text
        assert agent.said("engine.lost") == []
        assert len(agent.said("job.started")) > 2 * ROUNDS * len(ATTACKS)  # theirs too were begun
        assert agent.stop() == 0
    record_testsuite_property(f"against_{model}_longest_s", round(longest_s, 1))
