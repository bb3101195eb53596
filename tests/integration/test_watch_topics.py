"""Watch rules end to end: a real broker, mosquitto_pub, the daemon, the demo model."""

import json

import pytest
from running import AgentProcess, Listener, mosquitto_pub, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

RULES = """
[[watch]]
name = "door"
topic = "zigbee2mqtt/+"
when = { "json.contact" = [true, false] }
changed = "json.contact"
prompt = "Status: {{ topic.2 }} {{ json.contact }}. Is the door open?"
max_tokens = 12
answer_topic = "answers/{{ topic.2 }}"
answer_retain = true

[[watch]]
name = "house"
topic = ["home/#", "zigbee2mqtt/front"]
prompt = "Turn on the {{ payload }}."
max_tokens = 12
answer_format = "json"
"""


class Answers(Listener):
    """Keeps what is published, as text."""

    def _receive(self, inbound, receipt):
        self.messages.append((inbound, None))
        self.link.ack(receipt)

    def __exit__(self, *_exception):
        self.link.stop()

    def wait_on(self, topic, count=1):
        def found():
            payloads = [inbound.payload.decode() for inbound, _ in list(self.messages) if inbound.topic == topic]
            return payloads if len(payloads) >= count else None

        return wait_for(found, f"{count} x {topic}")


@pytest.fixture
def agent(broker, tmp_path, demo_model):
    models = [{"name": "demo", "path": str(demo_model), "context_tokens": 512}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=RULES) as running:
        running.wait_said("engine.ready")
        running.wait_said("link.up", 2)
        yield running


def test_what_a_sensor_publishes_is_answered_where_its_rule_says(agent, broker):
    with Answers(broker, "answers/#", "edge/v1/#") as answers:
        mosquitto_pub(broker, "zigbee2mqtt/front", '{"contact": false, "linkquality": 120}', "-r")
        (text,) = answers.wait_on("answers/front")
        assert text
        assert text == text.strip()
        (body,) = answers.wait_on("edge/v1/agents/edge-01/evt/watch/house")
        answer = json.loads(body)
        assert (answer["watch"], answer["topic"], answer["model"]) == ("house", "zigbee2mqtt/front", "demo")
        assert answer["timings"]["total_ms"] > 0
        mosquitto_pub(broker, "zigbee2mqtt/front", '{"contact": false, "linkquality": 90}')
        mosquitto_pub(broker, "zigbee2mqtt/front", '{"contact": true}')
        answers.wait_on("answers/front", 2)
        house = wait_for(lambda: watches(answers, "house", taken=3), "three jobs of the house")
        assert house["answered"] + house["superseded"] <= 3
        telemetry = wait_for(lambda: watches(answers, "door", taken=2, answered=2), "telemetry")
        assert telemetry["dropped"] == {"unchanged": 1}
        assert not [inbound.topic for inbound, _ in answers.messages if "/clients/" in inbound.topic]


def watches(answers, name, **fields):
    for inbound, _ in reversed(list(answers.messages)):
        if inbound.topic.endswith("/telemetry"):
            (found,) = [each for each in json.loads(inbound.payload)["watches"] if each["watch"] == name]
            return found if all(found[key] == value for key, value in fields.items()) else None
    return None


def test_a_broken_rule_names_its_key_and_nothing_starts(broker, tmp_path):
    agent = AgentProcess(
        folder=tmp_path / "agent", broker=broker, models=[], extra=RULES.replace("{{ topic.2 }}", "{{ x }}")
    )
    assert agent.start().process.wait(30) == 2
    said = agent.log.read_text()
    assert "watch.0.prompt: no variable is called 'x'" in said
    assert "watch.0.answer_topic" in said
