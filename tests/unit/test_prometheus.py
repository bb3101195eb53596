"""What Prometheus reads: every value of a telemetry under its name and unit, unknown ones not at all; the server."""

import contextlib
import resource
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.client import HTTPException

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families
from running import limited, wait_for

from edge_agent.base import small_server
from edge_agent.base.errors import Code
from edge_agent.health.condition import Condition
from edge_agent.health.counters import Counters
from edge_agent.integrations import http, prometheus
from edge_agent.protocol.payloads import AcceleratorReading, EngineReading, MachineReading, Telemetry

BARE = {"agent": "edge-01", "version": "0.1.0", "boot_id": "b", "uptime_s": 5.0, "health": "ready"}
FULL = Telemetry(
    **BARE,
    restraint=2,
    cpu_percent=25.0,
    cpu_mhz=1800.0,
    load_1m=1.5,
    memory_total_bytes=800,
    memory_available_bytes=400,
    memory_stall_percent=3.0,
    own_memory_bytes=10,
    own_memory_limit_bytes=20,
    swap_used_bytes=1,
    agent_rss_bytes=50,
    disk_free_bytes=60,
    hottest="cpu",
    hottest_celsius=61.0,
    heat_margin_c=19.0,
    slowed=("cooled by cpufreq",),
    power_watts=6.5,
    power_of="machine",
    joules_per_token=0.5,
    battery_percent=40.0,
    on_battery=True,
    undervoltage=False,
    network_received_bytes=7,
    network_sent_bytes=8,
    accelerators=(
        AcceleratorReading(
            name="card0", busy_percent=50.0, clock_mhz=900.0, memory_used_bytes=12, celsius=55.0, power_watts=9.5
        ),
    ),
    queue={"queued": 3, "running": 1},
    queue_oldest_s=12.0,
    engines=(
        EngineReading(
            model="phi",
            state="ready",
            running=1,
            lanes=2,
            context_tokens=4096,
            anonymous_bytes=100,
            mapped_bytes=200,
            prompt_per_second=90.0,
            generate_per_second=9.0,
        ),
    ),
    lifetime={"accepted": 9, "succeeded": 8, "completion_tokens": 70},
    outbox_waiting=4,
    outbox_in_flight=2,
    outbox_dropped=1,
    reconnects=3,
)


def sources(telemetry=FULL, *, counters=None, health="ready", reasons=(), connected=True, stuck=()):
    return prometheus.MetricSources(
        telemetry=lambda: telemetry,
        counts=(counters or Counters(["phi"])).counts,
        condition=lambda: Condition(health, reasons),
        connected=lambda: connected,
        stuck=lambda: stuck,
    )


def samples(*args, **kwargs):
    text = prometheus.metrics(sources(*args, **kwargs)).decode()
    return {
        (sample.name.removeprefix("edge_agent_"), *dict(sorted(sample.labels.items())).values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_value_of_telemetry_has_its_sample_in_base_units():
    seen = samples()
    expected = {
        ("build_info", "edge-01", "b", "0.1.0"): 1,
        ("uptime_seconds",): 5,
        ("cpu_busy_ratio",): 0.25,
        ("cpu_clock_hertz",): 1.8e9,
        ("load1",): 1.5,
        ("memory_total_bytes",): 800,
        ("memory_available_bytes",): 400,
        ("memory_stall_ratio",): 0.03,
        ("cgroup_memory_bytes",): 10,
        ("cgroup_memory_limit_bytes",): 20,
        ("swap_used_bytes",): 1,
        ("resident_memory_bytes",): 50,
        ("disk_free_bytes",): 60,
        ("temperature_celsius", "cpu"): 61,
        ("temperature_margin_celsius", "cpu"): 19,
        ("slowed_by_heat",): 1,
        ("power_watts", "machine"): 6.5,
        ("energy_per_token_joules",): 0.5,
        ("battery_charge_ratio",): 0.4,
        ("on_battery",): 1,
        ("undervoltage",): 0,
        ("network_received_bytes_total",): 7,
        ("network_sent_bytes_total",): 8,
        ("accelerator_busy_ratio", "card0"): 0.5,
        ("accelerator_clock_hertz", "card0"): 9e8,
        ("accelerator_memory_used_bytes", "card0"): 12,
        ("accelerator_temperature_celsius", "card0"): 55,
        ("queue_jobs", "queued"): 3,
        ("queue_jobs", "running"): 1,
        ("queue_oldest_seconds",): 12,
        ("engine_state", "phi", "ready"): 1,
        ("engine_running_jobs", "phi"): 1,
        ("engine_lanes", "phi"): 2,
        ("engine_context_tokens", "phi"): 4096,
        ("engine_anonymous_bytes", "phi"): 100,
        ("engine_mapped_bytes", "phi"): 200,
        ("engine_prompt_tokens_per_second", "phi"): 90,
        ("engine_output_tokens_per_second", "phi"): 9,
        ("lifetime_jobs_total", "accepted"): 9,
        ("lifetime_jobs_total", "succeeded"): 8,
        ("lifetime_output_tokens_total",): 70,
        ("outbox_waiting_messages",): 4,
        ("outbox_unanswered_messages",): 2,
        ("outbox_dropped_messages_total",): 1,
        ("reconnects_total",): 3,
        ("restraint_level",): 2,
    }
    assert {name: pytest.approx(value) for name, value in expected.items()} == {name: seen[name] for name in expected}


def test_every_reading_of_the_machine_that_is_a_number_is_there():
    """A field added to telemetry is not forgotten here: without it the text changes."""
    shown = prometheus.metrics(sources())
    for name, field in MachineReading.model_fields.items():
        if name in {"hottest", "power_of"}:  # labels of others
            continue
        without = FULL.model_copy(update={name: field.default})
        assert prometheus.metrics(sources(without)) != shown, name


def test_what_is_unknown_has_no_sample():
    seen = samples(Telemetry(**BARE))
    assert ("uptime_seconds",) in seen
    assert not [name for name in seen if name[0].startswith(("cpu", "temperature", "power", "swap", "engine_running"))]
    before_the_first = {name[0] for name in samples(None)}
    assert "health" in before_the_first
    assert "uptime_seconds" not in before_the_first


def test_counts_are_those_of_now():
    counters = Counters(["phi"])
    counters.rejected(Code.QUEUE_FULL)
    counters.lost("phi")
    seen = samples(counters=counters)
    assert (seen["rejected_messages_total", "queue_full"], seen["engine_losses_total", "phi"]) == (1, 1)
    assert (seen["first_token_seconds_bucket", "+Inf", "phi"], seen["first_token_seconds_sum", "phi"]) == (0, 0)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(small_server, "POLL_S", 0.01)


@contextmanager
def listening(made):
    server = http.HttpServer("127.0.0.1", 0)
    server.start(prometheus.routes(made))
    try:
        yield server
    finally:
        server.stop()


def get(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("made", "path", "status", "body"),
    [
        (sources(), "/readyz", 200, "ready\n"),
        (sources(health="degraded", reasons=("x",)), "/readyz", 200, "degraded\n"),
        (sources(health="starting", reasons=("phi: loads",)), "/readyz", 503, "phi: loads\n"),
        (sources(health="draining"), "/readyz", 503, "draining\n"),
        (sources(connected=False), "/readyz", 503, "no connection to the broker\n"),
        (sources(health="unhealthy", connected=False), "/healthz", 200, "alive\n"),
        (sources(stuck=("store",)), "/healthz", 503, "store does not come back\n"),
        (sources(), "/", 404, "not found\n"),
    ],
)
def test_health_and_readiness(made, path, status, body):
    with listening(made) as server:
        assert get(server, path) == (status, body)


def test_connections_are_few_and_end(monkeypatch):
    """Who says nothing, or a byte now and then, holds a connection no longer than anybody."""
    monkeypatch.setattr(http._Server, "connection_s", 60.0)
    with listening(sources()) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(2)]
        for each in idle:
            each.sendall(b"GET /metr")
        wait_for(lambda: len(server._server._ends_s) == 2, "both to have a place")
        server._server.cut(float("inf"))
        for each in idle:
            assert each.recv(1) == b""
            each.close()
        wait_for(lambda: not server._server._ends_s, "their places to be free")
        assert get(server, "/healthz")[0] == 200


SLOW = {
    "silent": b"",
    "half a question": b"GET /metrics HTTP/1.0\r\nX: ",
    "reads nothing": b"GET /metrics HTTP/1.0\r\n\r\n",
}


@pytest.mark.parametrize("said", SLOW.values(), ids=SLOW.keys())
def test_slow_connections_shut_nobody_out(said):
    """However many there are, and however often they come again: the oldest of them gives way to a probe."""
    with listening(sources()) as server, contextlib.ExitStack() as held:
        for _ in range(4 * http.CONNECTIONS_MAX):
            slow = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            slow.sendall(said)
            assert get(server, "/healthz")[0] == 200
        wait_for(lambda: len(server._server._ends_s) <= http.CONNECTIONS_MAX, "those that were cut off to end")


def test_who_cannot_be_let_in_for_want_of_descriptors_is_not_tried_without_end(monkeypatch):
    """As often as the server looks after its connections, and heard as soon as there is a descriptor."""
    with listening(sources()) as server:
        tries, get_request = [], server._server.get_request
        monkeypatch.setattr(server._server, "get_request", lambda: (tries.append(1), get_request())[1])
        waits, wait = [], server._stopping.wait
        monkeypatch.setattr(server._stopping, "wait", lambda _pause_s: (waits.append(1), wait(0.1))[1])
        asked = socket.socket()
        with limited(resource.RLIMIT_NOFILE, 3):
            asked.connect(("127.0.0.1", server.port))
            asked.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            wait_for(lambda: len(tries) > 3, "somebody who cannot be let in")
            assert len(waits) >= len(tries) - 1
        asked.settimeout(10)
        assert b"200" in asked.recv(100)
        asked.close()


def test_only_reading_is_possible():
    with listening(sources()) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        plain.sendall(b"POST /metrics HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        assert plain.recv(100).split(b" ")[1] == b"501"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no-such-host.invalid", "..", "x" * 100])
def test_an_address_that_cannot_be_had_is_said_and_waited_for(monkeypatch, host):
    """Taken, not there yet, or without a name server: the agent starts all the same, and answers when it can."""
    monkeypatch.setattr(http, "RETRY_S", 0.01)
    with listening(sources()) as first:
        port = first.port
        second = http.HttpServer(host, port, retry_s=0.01)
        second.start({"/": lambda: http.HttpResponse(b"there")})
        assert second.trouble.startswith(f"cannot listen on {host} port {port}")
    second._address = "127.0.0.1", port  # it is there now
    wait_for(lambda: not second.trouble, "the address")
    assert get(second, "/") == (200, "there")
    second.stop()


def test_a_fault_of_ours_ends_the_agent_as_everywhere(monkeypatch):
    crashed = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _crash: crashed.set())
    broken = prometheus.MetricSources(
        telemetry=lambda: None, counts=Counters([]).counts, condition=lambda: 1 / 0, connected=bool, stuck=tuple
    )
    with listening(broken) as server, pytest.raises((OSError, HTTPException)):
        get(server, "/readyz")
    assert crashed.wait(10)
