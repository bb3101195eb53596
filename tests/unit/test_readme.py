"""What the README, its documents and the example settings say is what the program does."""

import base64
import json
import re
from pathlib import Path

import pytest

from edge_agent.fleet.rows import AgentRow
from edge_agent.models.reference_answers import Question
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.topics import Topics
from edge_agent.settings import load as settings
from edge_agent.settings.upstream import UpstreamSection
from edge_agent.settings.watch import WatchSection
from edge_agent.watch import rules
from edge_agent.watch.decide import Memory, Take, decide
from edge_agent.watch.decode import decode_seen

ROOT = Path(__file__).parents[2]
WIDTH = 120
"""Characters of the longest line: what a terminal beside an editor shows."""
TOP = ("README.md", "examples/README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = {file: file.read_text() for file in (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md")))}
TOLD = "\n".join(PAGES.values())
REFERENCE = PAGES[ROOT / "docs/settings.md"]


def _fields():
    for section, info in settings.Settings.model_fields.items():
        if section == "watch":
            continue
        yield from ((f"{section}.{name}", each) for name, each in info.annotation.model_fields.items())
    yield from ((f"models.serve[].{name}", each) for name, each in settings.ServeSection.model_fields.items())
    yield from ((f"models.serve[].openai.{name}", each) for name, each in UpstreamSection.model_fields.items())
    yield from ((f"watch[].{name}", each) for name, each in WatchSection.model_fields.items())


FIELDS = {key: each for key, each in _fields() if key not in {"models.serve", "models.serve[].openai"}}
SAID = {"agent.id": "the host's name", "requesters.allow": "everybody", "requesters.admins": "everybody"}
"""Defaults in words."""


def _default(field):
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if default is None:
        return "unset"
    if default in ((), {}):
        return "none"
    return str(default).lower() if isinstance(default, bool) else f"{default:g}" if _counts(default) else str(default)


def _counts(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and value < 1e5


@pytest.mark.parametrize("key", FIELDS)
def test_every_setting_stands_in_the_reference_and_in_the_example(key):
    """With the default that it has."""
    (told,) = re.findall(rf"^\| `{re.escape(key)}` \| (.*?) \|", REFERENCE, flags=re.MULTILINE)
    told = f"{float(told):g}" if re.fullmatch(r"[0-9]{1,5}(\.[0-9]+)?", told) else told
    assert told == SAID.get(key, _default(FIELDS[key]))
    assert f"{key.rpartition('.')[2]} = " in (ROOT / "systemd/edge-agent.toml.example").read_text()


def test_the_documents_name_no_setting_that_does_not_exist():
    named = {line.split("`")[1] for line in TOLD.splitlines() if line.startswith("| `")}
    sections = (*(f"{section}." for section in settings.Settings.model_fields), "watch[]")
    assert {key for key in named if key.startswith(sections)} == set(FIELDS)


def _anchors(page):
    """The names under which a page's headings can be reached on the web."""
    page = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    heads = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]*)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert not anchor or anchor in _anchors(PAGES[file]), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_too_long(page):
    assert [line for line in PAGES[page].splitlines() if len(line) > WIDTH] == []


def test_the_readmes_settings_are_valid_as_pasted(tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", PAGES[ROOT / "README.md"], flags=re.DOTALL)
    (shown,) = [block for block in blocks if "[agent]" in block]
    (tmp_path / "edge-agent.toml").write_text(shown)
    assert settings.load(tmp_path / "edge-agent.toml", environ={}).mqtt.tls_ca_file


@pytest.mark.parametrize("key", AgentRow.__dataclass_fields__)
def test_every_key_of_a_fleets_agent_stands_in_the_documents(key):
    section = PAGES[ROOT / "docs/fleet.md"].partition("## Watch a fleet")[2].partition("\n## ")[0]
    assert f"`{key}`" in section


def test_the_example_settings_are_valid_and_show_the_defaults():
    loaded = settings.load(ROOT / "systemd/edge-agent.toml.example", environ={})
    defaults = settings.Settings()
    for section in settings.Settings.model_fields.keys() - {"agent"}:
        assert getattr(loaded, section) == getattr(defaults, section)


def test_the_documents_question_for_a_build_is_one():
    blocks = re.findall(r"```json\n(.*?)```", TOLD, flags=re.DOTALL)
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
def test_the_documents_watch_rules_work_as_pasted(tmp_path, topic, payload, answer_topic):
    """All of them in one file; each takes what its device publishes, and one rule alone does."""
    blocks = re.findall(r"```toml\n(.*?)```", TOLD, flags=re.DOTALL)
    file = tmp_path / "edge-agent.toml"
    file.write_text("".join(dict.fromkeys(block for block in blocks if "[[watch]]" in block)))
    read = rules.read(settings.load(file, environ={}), Topics("edge/v1", "edge-01"))
    (rule,) = [rule for rule in read if rule.takes(topic)]
    decision = decide(rule, decode_seen(Inbound(topic, payload)), Memory(), retained=False, now_s=0.0)
    assert isinstance(decision, Take)
    assert decision.answer_topic == answer_topic
    assert (decision.image is None) == (payload != JPEG and "yard" not in topic)
    rule.request(decision, job_id="a", image_sha256=None)


def test_the_documents_upstream_is_valid_as_pasted(tmp_path):
    (table,) = re.findall(r"```toml\n([^`]*\[models\.serve\.openai\][^`]*)```", TOLD)
    (tmp_path / "edge-agent.toml").write_text(table)
    (cloud,) = settings.load(tmp_path / "edge-agent.toml", environ={}).models.serve
    assert (cloud.name, cloud.openai.host) == ("cloud", "models.example")
