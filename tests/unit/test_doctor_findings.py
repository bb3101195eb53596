"""What the doctor makes of a machine, of settings and of what a broker grants, each thing by itself."""

from datetime import UTC, datetime

import pytest
from fakes import machine as machine_of

from edge_agent.doctor import broker, builds, machine
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.welcome import Welcome
from edge_agent.settings.load import Settings
from hardware.machine import Accelerator, Kind, Vendor

MQTT = {"username": "edge-01", "host": "127.0.0.1"}


def levels(findings):
    return {each.about: str(each.level) for each in findings}


@pytest.mark.parametrize(("free", "level"), [(99, "failed"), (101, "warning"), (401, "ok")])
def test_room_for_jobs_is_judged_by_what_the_settings_want(monkeypatch, tmp_path, free, level):
    loaded = Settings(agent={"state_dir": tmp_path / "none"})
    one = loaded.queue.min_free_bytes / 100
    monkeypatch.setattr(machine, "free_bytes", lambda _folder: int(free * one))
    found = machine.disk(loaded)
    assert found.level == level
    assert (found.mend is None) == (level == "ok")


def test_a_clock_before_the_program_was_made_is_wrong():
    found = machine.clock(datetime(1970, 1, 1, tzinfo=UTC))
    assert (found.level, found.mend) == ("failed", "sudo timedatectl set-ntp true")


@pytest.mark.parametrize(("usable", "level"), [(True, "ok"), (False, "warning"), (None, "unknown")])
def test_an_accelerator_that_may_not_be_used_is_said_with_what_opens_it(usable, level):
    card = Accelerator(Kind.GPU, Vendor.INTEL, "a card", node="/dev/dri/renderD128", usable=usable, mend="usermod")
    (found,) = machine.accelerators(machine_of(accelerators=(card,)))
    assert (found.about, found.level) == ("/dev/dri/renderD128", level)
    assert usable is not False or found.mend == "usermod"


@pytest.mark.parametrize(("pull", "level"), [("never", "failed"), ("missing", "warning")])
def test_a_build_that_is_not_here_is_worse_where_nothing_fetches_it(tmp_path, pull, level):
    found = levels(builds.look(Settings(models={"dir": tmp_path, "pull": pull}), full=False))
    assert found == {"model phi-3.5-mini": level}


@pytest.mark.parametrize("there", [True, False])
def test_the_key_of_an_upstream_must_be_readable(tmp_path, there):
    key = tmp_path / "key"
    if there:
        key.write_text("k")
    table = {"url": "https://models.example/v1", "model": "big", "key_file": key}
    serve = [{"name": "cloud", "openai": table}]
    found = levels(builds.look(Settings(models={"dir": tmp_path / "none", "serve": serve}), full=False))
    assert found == {"model cloud": "ok" if there else "failed"}


@pytest.mark.parametrize(
    ("changed", "warned"),
    [
        ({}, []),
        ({"username": "grafana"}, ["mqtt.username"]),
        ({"host": "broker.local"}, ["mqtt.tls"]),
        ({"host": "broker.local", "tls": True}, []),
    ],
)
def test_who_we_are_and_a_password_in_the_open_are_looked_at(changed, warned):
    loaded = Settings(agent={"id": "edge-01"}, mqtt=MQTT | changed)
    found = levels(broker.files(loaded, Access.of(loaded.mqtt, client_id="edge-01.doctor")))
    assert found == dict.fromkeys(warned, "warning")


@pytest.mark.parametrize(
    ("welcome", "found"),
    [
        (Welcome(None, retain=True, shared=True), {"session": "ok"}),
        (Welcome(60, retain=True, shared=True), {"session": "warning"}),
        (Welcome(None, retain=False, shared=True), {"session": "failed"}),
        (Welcome(None, retain=True, shared=False), {"session": "ok", "pools": "failed"}),
        (None, {}),
    ],
)
def test_what_the_broker_grants_is_held_against_what_is_needed(welcome, found):
    loaded = Settings(agent={"id": "edge-01", "pools": ["hall"]})
    assert levels(broker.session(loaded, welcome)) == found
