"""What the README and the example settings say is what the program does."""

import base64
import json
import re
from pathlib import Path

import pytest

from edge_agent import settings
from edge_agent.fleet.rows import Row
from edge_agent.jobs import rules
from edge_agent.jobs.watch import Memory, Take, decide
from edge_agent.models.known import Question
from edge_agent.mqtt.topics import Topics
from edge_agent.mqtt.wire import Inbound, decode_seen
from edge_agent.upstream_settings import UpstreamSection
from edge_agent.watch_settings import WatchSection

ROOT = Path(__file__).parents[2]


def _keys():
    for section, info in settings.Settings.model_fields.items():
        if section == "watch":
            continue
        yield from (f"{section}.{name}" for name in info.annotation.model_fields if name != "serve")
    yield from (f"models.serve[].{name}" for name in settings.ServeSection.model_fields if name != "openai")
    yield from (f"models.serve[].openai.{name}" for name in UpstreamSection.model_fields)
    yield from (f"watch[].{name}" for name in WatchSection.model_fields)


@pytest.mark.parametrize("key", list(_keys()))
def test_every_setting_stands_in_the_readme_and_in_the_example(key):
    assert f"| `{key}` |" in (ROOT / "README.md").read_text()
    assert f"{key.rpartition('.')[2]} = " in (ROOT / "systemd/edge-agent.toml.example").read_text()


def test_the_readme_names_no_setting_that_does_not_exist():
    named = {line.split("`")[1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")}
    sections = (*(f"{section}." for section in settings.Settings.model_fields), "watch[]")
    assert {key for key in named if key.startswith(sections)} == set(_keys())


@pytest.mark.parametrize("key", Row.__dataclass_fields__)
def test_every_key_of_a_fleets_agent_stands_in_the_readme(key):
    section = (ROOT / "README.md").read_text().partition("## Watch a fleet")[2].partition("\n## ")[0]
    assert f"`{key}`" in section


def test_the_example_settings_are_valid_and_show_the_defaults():
    loaded = settings.load(ROOT / "systemd/edge-agent.toml.example", environ={})
    defaults = settings.Settings()
    for section in settings.Settings.model_fields.keys() - {"agent"}:
        assert getattr(loaded, section) == getattr(defaults, section)


def test_the_readmes_question_for_a_build_is_one():
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (question,) = [block for block in blocks if '"expected"' in block]
    assert Question.model_validate_json(question).after_long


JPEG = b"\xff\xd8\xff\xe0"
FRIGATE_EVENT = {
    "type": "new",
    "before": {"id": "1607123955.475377-mxklsc", "camera": "front_door"},
    "after": {"camera": "front_door", "label": "person", "sub_label": None, "current_zones": ["driveway"]},
}
"""As docs.frigate.video/integrations/mqtt describes `frigate/events`, shortened."""


@pytest.mark.parametrize(
    ("topic", "payload", "answer_topic"),
    [
        ("photos/desk", JPEG, "answers/desk"),
        ("frigate/front_door/person/snapshot", JPEG, "answers/front_door/person"),
        ("frigate/events", json.dumps(FRIGATE_EVENT).encode(), "answers/front_door/event"),
        ("esp32-cam/meter", JPEG, "edge/v1/agents/edge-01/watch/meter"),
        ("esp32-cam/yard", b'{"image": "%b"}' % base64.b64encode(JPEG), "edge/v1/agents/edge-01/watch/yard"),
        ("zigbee2mqtt/cellar", b'{"battery":97,"contact":false,"linkquality":72}', "answers/cellar"),
        ("homeassistant/sensor/attic/state", b"31.5", "edge/v1/agents/edge-01/watch/heat"),
    ],
)
def test_the_readmes_watch_rules_work_as_pasted(tmp_path, topic, payload, answer_topic):
    """All of them in one file; each takes what its device publishes, and one rule alone does."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    file = tmp_path / "edge-agent.toml"
    file.write_text("".join(block for block in blocks if "[[watch]]" in block))
    read = rules.read(settings.load(file, environ={}), Topics("edge/v1", "edge-01"))
    (rule,) = [rule for rule in read if rule.takes(topic)]
    decision = decide(rule, decode_seen(Inbound(topic, payload)), Memory(), retained=False, now_s=0.0)
    assert isinstance(decision, Take)
    assert decision.answer_topic == answer_topic
    assert (decision.image is None) == (payload != JPEG and "yard" not in topic)
    rule.request(decision, job_id="a", image_sha256=None)


def test_the_readmes_upstream_is_valid_as_pasted(tmp_path):
    (table,) = re.findall(r"```toml\n([^`]*\[models\.serve\.openai\][^`]*)```", (ROOT / "README.md").read_text())
    (tmp_path / "edge-agent.toml").write_text(table)
    (cloud,) = settings.load(tmp_path / "edge-agent.toml", environ={}).models.serve
    assert (cloud.name, cloud.openai.host) == ("cloud", "models.example")
