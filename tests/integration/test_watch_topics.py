"""Watch rules end to end: a real broker, mosquitto_pub, the daemon, the demo model."""

import json
import subprocess
import threading

import psutil
import pytest
from authority import Authority, mosquitto_tls
from PIL import Image, ImageDraw
from running import PATIENCE_S, AgentProcess, Listener, mosquitto_pub, requester, wait_for
from secured import refusing
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.mqtt.private_broker import PrivateBroker, random_port
from edge_agent.protocol.filters import SLASHES_MAX, publishable
from edge_agent.protocol.messages import Publication
from edge_agent.watch.decide import TOPIC_BYTES_MAX

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
        (body,) = answers.wait_on("edge/v1/agents/edge-01/watch/house")
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


CAMERA = """
[[watch]]
name = "camera"
topic = "cams/+"
prompt = "What is shown in this image?"
max_tokens = 24
answer_topic = "answers/{{ topic.2 }}"
"""


@pytest.fixture(scope="module")
def demo_vision(tmp_path_factory):
    """The trained model, which knows shapes and colours."""
    from edge_agent.synth import build_demo

    return build_demo(tmp_path_factory.mktemp("models") / "demo-vision", vision=True)


@pytest.fixture
def seeing(broker, tmp_path, demo_vision):
    models = [{"name": "sees", "path": str(demo_vision), "context_tokens": 4096}]
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=CAMERA) as running:
        running.wait_said("engine.ready")
        running.wait_said("link.up", 2)
        yield running


def photo(file, shape, colour, *, grain=0):
    """A shape on a noisy ground, so that no two photos are the same file; about 200 kB."""
    image = Image.effect_noise((640, 480), 20 + grain).convert("RGB").point(lambda value: 200 + value // 5)
    draw, box = ImageDraw.Draw(image), (160, 80, 480, 400)
    draw.ellipse(box, fill=colour) if shape == "circle" else draw.rectangle(box, fill=colour)
    image.save(file, "JPEG", quality=95)
    return file


def publish_file(broker, topic, file, qos=0):
    """What a user types."""
    command = ["mosquitto_pub", "-h", broker.host, "-p", str(broker.port), "-q", str(qos), "-t", topic, "-f", str(file)]
    subprocess.run(command, check=True, timeout=60)


def test_a_photo_of_mosquitto_pub_is_answered(seeing, broker, tmp_path):
    """Two photos of two cameras; of each the answer tells what it shows, and nothing is left on the disk."""
    with Answers(broker, "answers/#") as answers:
        publish_file(broker, "cams/one", photo(tmp_path / "a.jpg", "circle", "red"))
        assert "red circle" in answers.wait_on("answers/one")[0]
        publish_file(broker, "cams/two", photo(tmp_path / "b.jpg", "square", "blue"), qos=1)
        assert "blue square" in answers.wait_on("answers/two")[0]
        wait_for(lambda: not spooled(seeing), "the spool to be empty")


def spooled(agent):
    return [file for file in (agent.state_dir / "images").rglob("*") if file.is_file()]


def test_twenty_photos_a_second_cost_neither_memory_nor_disk_and_the_newest_wins(seeing, broker, tmp_path):
    """Faster than the engine, through a kill of the agent: what is answered last is what came last."""
    files = [photo(tmp_path / f"{number}.jpg", "circle", "red", grain=number) for number in range(20)]
    last = photo(tmp_path / "last.jpg", "square", "blue")
    pause, heaviest = threading.Event(), 0
    resting_bytes = psutil.Process(seeing.pid).memory_info().rss
    with Answers(broker, "answers/#", "edge/v1/agents/edge-01/evt/telemetry") as answers:

        def flood(rounds):
            nonlocal heaviest
            for number in range(rounds):
                publish_file(broker, "cams/one", files[number % len(files)], qos=number % 2)
                lying = sum(file.stat().st_size for file in spooled(seeing) if file.exists())
                heaviest = max(heaviest, lying)
                pause.wait(0.03)

        flood(80)
        taken = wait_for(lambda: watches(answers, "camera"), "telemetry")
        assert taken["superseded"] > 0
        assert psutil.Process(seeing.pid).memory_info().rss - resting_bytes < 25 * 2**20
        seeing.kill()
        seeing.start()
        seeing.wait_said("engine.ready", 2)
        seeing.wait_said("link.up", 4)
        flood(40)
        publish_file(broker, "cams/one", last, qos=1)
        wait_for(lambda: "blue square" in answers.wait_on("answers/one")[-1], "the newest")
        wait_for(lambda: not spooled(seeing), "the spool to be empty")
        assert heaviest < 20 * 2**20
        told = wait_for(lambda: watches(answers, "camera"), "telemetry")
        assert set(told["dropped"]) <= {"behind"}


def test_what_was_accepted_is_answered_after_a_kill(broker, tmp_path, tiny_model):
    """Twenty messages are stored, the agent is killed, and every one of them is answered."""
    rule = """
[[watch]]
name = "lines"
topic = "lines/+"
prompt = "Status: pump {{ payload }}. Is the pump on?"
max_tokens = 300
pending = 100
answer_topic = "answers/{{ topic.2 }}"
"""
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 512}]
    with (
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=rule) as agent,
        Answers(broker, "answers/#", "edge/v1/agents/edge-01/evt/telemetry") as answers,
    ):
        agent.wait_said("engine.ready")
        agent.wait_said("link.up", 2)
        for number in range(20):
            mosquitto_pub(broker, f"lines/{number}", "on")
        agent.wait_said("job.accepted", 20)
        agent.kill()
        assert len(agent.said("job.ended")) < 20
        agent.start()
        for number in range(20):
            answers.wait_on(f"answers/{number}")


def test_what_the_broker_retains_is_skipped_or_taken_once(broker, tmp_path, demo_model):
    """A rule that wants it gets it when its subscription is new, and not again after a restart."""
    rules = "".join(
        f"""
[[watch]]
name = "{name}"
topic = "{name}/+"
retained = "{name}"
prompt = "Turn on the {{{{ payload }}}}."
max_tokens = 8
answer_topic = "answers/{name}"
"""
        for name in ("once", "skip")
    )
    for name in ("once", "skip"):
        mosquitto_pub(broker, f"{name}/a", "fan", "-r")
    models = [{"name": "demo", "path": str(demo_model), "context_tokens": 512}]
    with (
        Answers(broker, "answers/#") as answers,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=rules) as agent,
    ):
        answers.wait_on("answers/once")
        agent.stop()
        agent.start()
        agent.wait_said("link.up", 4)
        agent.wait_said("engine.ready", 2)
        mosquitto_pub(broker, "skip/a", "fan", "-r")  # published now, retained or not, it is news
        answers.wait_on("answers/skip")
        assert [inbound.topic for inbound, _ in answers.messages] == ["answers/once", "answers/skip"]


def rule(name, *topics):
    return f"""
[[watch]]
name = "{name}"
topic = {json.dumps(topics)}
prompt = "Turn on the {{{{ payload }}}}."
max_tokens = 8
answer_topic = "answers/{name}"
"""


def test_a_rule_that_is_gone_leaves_its_topic_silent(tmp_path, demo_model):
    """What the broker kept for it is not sent, nor what comes later; the rule that stays is heard."""
    models = [{"name": "demo", "path": str(demo_model), "context_tokens": 512}]
    both = rule("stays", "stays/+") + rule("gone", "gone/+")
    with (
        PrivateBroker(folder=tmp_path / "broker", settings="log_type all\n") as broker,
        Answers(broker, "answers/#") as answers,
        AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=both) as agent,
    ):
        agent.wait_said("link.up", 2)
        mosquitto_pub(broker, "gone/a", "fan")
        answers.wait_on("answers/gone")
        agent.stop()
        mosquitto_pub(broker, "gone/away", "fan")
        agent.config.write_text(agent.config.read_text().replace(rule("gone", "gone/+"), ""))
        agent.start()
        agent.wait_said("link.up", 4)
        mosquitto_pub(broker, "gone/later", "fan")
        mosquitto_pub(broker, "stays/a", "fan")
        answers.wait_on("answers/stays")
        assert [inbound.topic for inbound, _ in answers.messages] == ["answers/gone", "answers/stays"]
        sent = [line for line in broker.log.read_text().splitlines() if "Sending PUBLISH to edge-01.watch." in line]
        assert [line for line in sent if "'stays/a'" in line]
        assert not [line for line in sent if "'gone/away'" in line or "'gone/later'" in line]


def test_what_the_broker_does_not_let_it_watch_is_said_and_costs_no_pool(tmp_path, demo_model):
    """Over TLS: in presence and by the doctor; jobs of the pool and what else is watched are answered."""
    authority, port = Authority(tmp_path / "tls"), random_port()
    tls = f"listener {port} 127.0.0.1\n" + mosquitto_tls(authority, authority.issue("broker"))
    with PrivateBroker(folder=tmp_path / "broker", settings=refusing(tmp_path, "cams/#") + tls) as broker:
        agent = AgentProcess(
            folder=tmp_path / "agent",
            broker=broker,
            models=[{"name": "demo", "path": str(demo_model), "context_tokens": 512}],
            extra=rule("cams", "cams/+") + rule("doors", "doors/+"),
        )
        config = agent.config.read_text().replace(f"port = {broker.port}", f"port = {port}")
        config = config.replace("[mqtt]\n", f'pools = ["hall"]\n[mqtt]\ntls_ca_file = "{authority.ca}"\n')
        agent.config.write_text(config)
        with (
            Answers(broker, "answers/#") as answers,
            Listener(broker, "edge/v1/agents/edge-01/evt/presence") as monitor,
            requester(broker) as client,
            agent,
        ):
            (refused,) = agent.wait_said("link.subscription_refused")
            assert refused["filters"] == ["cams/+"]
            agent.wait_said("engine.ready")
            monitor.wait(
                "presence", health="degraded", reason="the broker refuses the watched topic cams/+ (Not authorized)"
            )
            assert client.submit(pool="hall", prompt="Hello", max_tokens=4).result(60).agent == "edge-01"
            mosquitto_pub(broker, "doors/a", "fan")
            answers.wait_on("answers/doors")
            run = CliRunner().invoke(app, ["doctor", "--json", "--config", str(agent.config)])
            hearing = [each for each in json.loads(run.stdout)["findings"] if each["about"] == "hearing"]
            assert [(each["level"], each["said"]) for each in hearing] == [("failed", "the broker refuses cams/+")]


def test_every_topic_that_is_called_one_is_taken_by_the_broker(broker):
    """It ends the connection over another, and would each time that the message is sent again."""
    topics = ["a", "/", "ä/🙂/\ufffd/\ue000/\xa0/ ", "x" * TOPIC_BYTES_MAX, "/" * SLASHES_MAX]
    answered = []
    access = Access(broker.host, broker.port, client_id="publisher", clean_start=True)
    link = Link(access, subscriptions=())
    link.on_answered.connect(lambda _mid, reason: answered.append(reason))
    link.start()
    try:
        assert link.wait_connected(PATIENCE_S)
        for topic in topics:
            assert publishable(topic)
            link.publish(Publication(topic, b"x", qos=1))
        wait_for(lambda: len(answered) == len(topics), "the broker's answers")
        assert link.connections == 1
    finally:
        link.stop()


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
