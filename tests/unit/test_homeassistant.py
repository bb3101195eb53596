"""What Home Assistant is told: keys it documents, templates that read what is really published, and when it is told."""

import importlib.util
import json
import os

import pytest

from edge_agent.integrations.homeassistant import STATE_CHARACTERS_MAX, HomeAssistant, WatchAnswers, device
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import EngineReading, Presence, Telemetry
from edge_agent.protocol.topics import Topics

TOPICS = Topics("edge/v1", "edge-01")
WATCHES = (
    WatchAnswers("visitors", "edge/v1/agents/edge-01/evt/watch/visitors", as_json=False),
    WatchAnswers("belt", "answers/+", as_json=True),
)

# https://www.home-assistant.io/integrations/mqtt/ (device discovery payload, availability, origin) and
# https://www.home-assistant.io/integrations/sensor.mqtt/ (configuration variables); the shared keys are those of
# homeassistant/components/mqtt/schemas.py.
DEVICE_KEYS = {
    "configuration_url",
    "connections",
    "hw_version",
    "identifiers",
    "manufacturer",
    "model",
    "model_id",
    "name",
    "serial_number",
    "suggested_area",
    "sw_version",
    "via_device",
}
ORIGIN_KEYS = {"name", "sw_version", "support_url"}
AVAILABILITY_KEYS = {
    "availability",
    "availability_mode",
    "availability_template",
    "availability_topic",
    "payload_available",
    "payload_not_available",
}
ROOT_KEYS = {"device", "origin", "components", "state_topic", "command_topic", "qos", "encoding"} | AVAILABILITY_KEYS
SENSOR_KEYS = {
    "platform",
    "device_class",
    "enabled_by_default",
    "encoding",
    "entity_category",
    "entity_picture",
    "expire_after",
    "force_update",
    "icon",
    "json_attributes_template",
    "json_attributes_topic",
    "last_reset_value_template",
    "name",
    "object_id",
    "options",
    "qos",
    "state_class",
    "state_topic",
    "suggested_display_precision",
    "unique_id",
    "unit_of_measurement",
    "value_template",
} | AVAILABILITY_KEYS
STATE_CLASSES = {"measurement", "total", "total_increasing"}
UNITS = {"temperature": {"°C", "°F", "K"}, "data_size": {"B", "kB", "MB", "GB", "KiB", "MiB", "GiB"}, "enum": {None}}
"""Device classes used here, and the units homeassistant/components/sensor/const.py allows them (DEVICE_CLASS_UNITS)."""


def described(watches=WATCHES):
    return device(TOPICS, model="Raspberry Pi 5", period_s=10.0, watches=watches)


def test_only_documented_keys_are_used():
    found = described()
    assert found.keys() <= ROOT_KEYS
    assert found["device"].keys() <= DEVICE_KEYS
    assert found["origin"].keys() <= ORIGIN_KEYS
    assert {"device", "origin", "components"} <= found.keys()  # what is required of a device
    for sensor in found["components"].values():
        assert sensor.keys() <= SENSOR_KEYS
        assert {"platform", "unique_id", "state_topic"} <= sensor.keys()
        assert sensor["platform"] == "sensor"
        assert sensor.get("state_class") in STATE_CLASSES | {None}
        assert sensor.get("entity_category") in {"diagnostic", None}
        if (kind := sensor.get("device_class")) is not None:
            assert sensor.get("unit_of_measurement") in UNITS[kind]
        if sensor.get("device_class") == "enum":  # may have options, and neither unit nor state class
            assert "state_class" not in sensor


def test_names_are_unique_and_stay_the_same():
    ids = [sensor["unique_id"] for sensor in described()["components"].values()]
    assert len(set(ids)) == len(ids)
    assert "edge_agent_edge-01_temperature" in ids


def read(template, payload):
    """Render a template as Home Assistant does: `value` is the payload, `value_json` what is in it."""
    if importlib.util.find_spec("jinja2") is None:
        lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lacking("jinja2 is not installed; install it with: pip install -e '.[dev]'")
    import jinja2

    try:
        parsed = json.loads(payload)
    except ValueError:
        parsed = None
    text = payload if isinstance(payload, str) else payload.decode()
    return jinja2.Environment().from_string(template).render(value=text, value_json=parsed)


def values(telemetry):
    return {
        key: read(sensor["value_template"], telemetry.encode())
        for key, sensor in described(())["components"].items()
        if sensor["state_topic"] == TOPICS.event("telemetry")
    }


BARE = {"agent": "edge-01", "version": "0.1.0", "boot_id": "b", "uptime_s": 5.0, "health": "degraded"}


def test_the_templates_read_what_telemetry_says():
    engines = (
        EngineReading(model="phi", state="ready", running=1, generate_per_second=9.5),
        EngineReading(model="vision", state="ready", running=0),
    )
    full = Telemetry(
        **BARE,
        reasons=("fewer lanes: hot", "x" * 300),
        queue={"queued": 3, "running": 1},
        engines=engines,
        hottest_celsius=61.5,
        memory_available_bytes=3 * 2**29,
        cpu_percent=25.0,
        lifetime={"accepted": 9, "succeeded": 8},
    )
    seen = values(full)
    assert len(seen.pop("reason")) == STATE_CHARACTERS_MAX
    assert seen == {
        "queue": "4",
        "speed": "9.5",
        "temperature": "61.5",
        "memory": "1.5",
        "processor": "25.0",
        "answered": "8",
    }


def test_what_is_not_told_is_unknown_and_no_fault():
    """`None` is what Home Assistant's sensors take for unknown."""
    seen = values(Telemetry(**BARE))
    assert seen.pop("reason") == ""
    assert set(seen.values()) == {"None"}


@pytest.mark.parametrize(
    ("presence", "health", "state"), [({"health": "ready"}, "ready", "online"), ({}, "offline", "offline")]
)
def test_presence_is_health_and_availability(presence, health, state):
    payload = Presence(agent="edge-01", state=state, boot_id="b", conn_seq=1, **presence).encode()
    found = described()
    assert read(found["availability_template"], payload) == state
    assert read(found["components"]["health"]["value_template"], payload) == health
    assert health in found["components"]["health"]["options"]


def test_answers_of_watches_are_cut_to_what_a_state_may_be():
    found = described()["components"]
    assert read(found["watch_visitors"]["value_template"], "A cat. " * 99) == ("A cat. " * 99)[:STATE_CHARACTERS_MAX]
    assert read(found["watch_belt"]["value_template"], b'{"text": "full", "topic": "t"}') == "full"
    assert found["watch_belt"]["state_topic"] == "answers/+"


@pytest.fixture
def made(tmp_path):
    """Make one with a prefix, or None; return it and what it said."""

    def make(prefix):
        said = []
        one = HomeAssistant(
            TOPICS,
            prefix=prefix,
            model=None,
            period_s=10.0,
            watches=(),
            mark=tmp_path / "homeassistant",
        )
        one.on_said.connect(
            lambda publication: said.append((publication.topic, bool(publication.payload), publication.retain))
        )
        return one, said

    return make


CONFIG = "homeassistant/device/edge-01/config"


def test_it_is_announced_retained_and_again_when_home_assistant_is_back(made):
    one, said = made("homeassistant")
    one.announce()
    one.seen(Inbound("homeassistant/status", b"offline"))
    assert said == [(CONFIG, True, True)]
    one.seen(Inbound("homeassistant/status", b"online"))
    assert said == [(CONFIG, True, True)] * 2
    assert one.status_topic == "homeassistant/status"


def test_switched_off_it_is_taken_back_until_the_broker_has_heard_and_then_forgotten(made):
    one, _ = made("homeassistant")
    one.announce()
    one.settled()
    for _ in range(2):  # killed before the broker heard: said again
        off, said = made(None)
        off.announce()
        assert said == [(CONFIG, False, True)]
    off.settled()
    after, said = made(None)
    after.announce()
    assert said == []


def test_under_another_prefix_the_first_is_taken_back(made):
    one, _ = made("homeassistant")
    one.announce()
    moved, said = made("ha")
    moved.announce()
    assert said == [(CONFIG, False, True), ("ha/device/edge-01/config", True, True)]


def test_a_disk_that_takes_no_note_keeps_it_from_being_announced_and_nothing_else(made, tmp_path):
    """What is announced can always be taken back; it is tried again with the next connection."""
    one, said = made("homeassistant")
    (tmp_path / "homeassistant").mkdir()
    one.announce()
    assert said == []
    (tmp_path / "homeassistant").rmdir()
    one.announce()
    assert said == [(CONFIG, True, True)]


@pytest.mark.parametrize("noted", [b"", b"\0" * 35, b"\xff\xfe"])
def test_a_note_that_a_power_cut_spoilt_is_written_anew_and_nothing_taken_back(made, tmp_path, noted):
    (tmp_path / "homeassistant").write_bytes(noted)
    one, said = made("homeassistant")
    one.announce()
    assert said == [(CONFIG, True, True)]
    assert (tmp_path / "homeassistant").read_text() == CONFIG


def test_a_note_that_cannot_be_removed_ends_nothing(made, tmp_path):
    (tmp_path / "homeassistant").mkdir()
    off, _ = made(None)
    off.settled()
