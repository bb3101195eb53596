"""A fleet on a real broker: agents killed alone and with their broker, made-up ones, and who looks at them."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import contextmanager

import pytest
from running import PATIENCE_S, AgentProcess, Listener, mosquitto_pub, requester, wait_for
from typer.testing import CliRunner

from edge_agent.cli.app import app
from edge_agent.fleet.monitor import Monitor
from edge_agent.fleet.rows import AgentRow, rows
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import WILL_DELAY_S
from edge_agent.protocol.payloads import Presence
from edge_agent.protocol.topics import Topics

pytestmark = pytest.mark.broker

AGENTS = 12
PRESENCE = Topics("edge/v1", "edge-01").event("presence")


class Watching:
    """A monitor, and every state in which it has shown an agent, one after the other."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.states = []

    def state(self, agent="edge-01"):
        self.monitor.attend()
        found = {row.agent: row.state for row in rows(self.monitor.roster, self.monitor._now_s())}.get(agent)
        if found not in self.states[-1:]:
            self.states.append(found)
        return found

    def wait(self, *states, timeout_s=PATIENCE_S):
        wait_for(lambda: self.state() in states, f"an agent that is {states}, not {self.states}", timeout_s)


@contextmanager
def watching(broker):
    access = Access(broker.host, broker.port, client_id="watching", clean_start=True)
    with Monitor(access, root="edge/v1") as monitor:
        yield Watching(monitor)


def agent_on(broker, folder, **how):
    """A real agent. It has no build of its model: that is not well, and it is there."""
    return AgentProcess(folder=folder, broker=broker, models=[], **how)


def test_an_agent_killed_hard_is_offline_within_the_wills_delay_and_no_late_will_kills_it_again(broker, tmp_path):
    """It reports too seldom to be lost meanwhile: that it is gone is what its will says."""
    with (
        watching(broker) as fleet,
        Listener(broker, PRESENCE) as presences,
        agent_on(broker, tmp_path / "agent", telemetry_s=600) as agent,
    ):
        fleet.wait("unhealthy")
        agent.kill()
        fleet.wait("offline", timeout_s=WILL_DELAY_S + 5)
        will = presences.of("presence")[-1]
        assert will["state"] == "offline"

        agent.start()
        fleet.wait("unhealthy")
        fleet.states.clear()
        late = Presence.model_validate(will).encode().decode()
        mosquitto_pub(broker, PRESENCE, late, "-r")
        presences.wait("presence", 2, **will)
        wait_for(lambda: presences.of("presence")[-1]["state"] == "online", "the agent's own word on it")
        assert fleet.state() == "unhealthy"
        assert fleet.states == ["unhealthy"]
        with watching(broker) as newcomer:
            newcomer.wait("unhealthy")
            assert "offline" not in newcomer.states


def test_an_agent_killed_with_its_broker_is_lost(broker, tmp_path):
    """Nobody is left to publish its will, and what the broker kept says that it is there."""
    with watching(broker) as fleet, agent_on(broker, tmp_path / "agent", telemetry_s=1) as agent:
        fleet.wait("unhealthy")
        wait_for(lambda: fleet.state() and fleet.monitor.complete(), "a report")
        os.kill(broker.pid, signal.SIGUSR1)  # mosquitto(8): save what is kept; else only the last five seconds' is lost
        wait_for((broker.folder / "state" / "mosquitto.db").exists, "the broker's state on its disk")
        broker.kill()
        agent.kill()
        broker.start()
        fleet.wait("lost")
        assert "offline" not in fleet.states
        with watching(broker) as newcomer:
            newcomer.wait("unhealthy", "lost")  # kept: all that is known at first


def command(broker, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "fleet", "--host", broker.host, "--port", str(broker.port), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={"PATH": "/usr/bin", "COLUMNS": "120"},
    )


@contextmanager
def simulated(broker):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edge_agent", "simulate", "--agents", str(AGENTS), "--period-s", "1"),
            *("--token-ms", "1", "--host", broker.host, "--port", str(broker.port)),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def objects(done):
    return {each["agent"]: each for each in map(json.loads, done.stdout.splitlines())}


def test_made_up_agents_live_work_and_leave_as_real_ones_and_are_seen(broker):
    with simulated(broker) as simulation, Listener(broker, "edge/v1/agents/+/evt/#") as listener:
        wait_for(lambda: len({body["agent"] for body in listener.of("telemetry")}) == AGENTS, "a report of each")
        done = command(broker, "--json")
        found = objects(done)
        assert (done.returncode, len(found)) == (0, AGENTS)
        for each in found.values():
            assert list(each) == list(AgentRow.__dataclass_fields__)
            assert each["state"] in {"ready", "degraded"}
            assert each["tokens_per_s"] > 0
            assert each["last_seen_s"] < 10

        with requester(broker) as client:
            handles = [client.submit(name, prompt="hello", max_tokens=5) for name in found]
            for handle in handles:
                assert handle.result(PATIENCE_S).text == "This answer is made up"

        shown = command(broker, "--once", "--filter", "sim-00")
        assert shown.returncode == 0
        assert f"9 of {AGENTS} agents" in shown.stdout
        assert command(broker, "sim-001", "--once").stdout.startswith("sim-001  ")
        browse(broker)

        simulation.send_signal(signal.SIGTERM)
        _, said = simulation.communicate(timeout=PATIENCE_S)
        assert simulation.returncode == 0
        assert f"{AGENTS + 1} jobs accepted, {AGENTS + 1} answered, 0 refused" in said
        done = command(broker, "--json", "--wait-s", "0")
        assert done.returncode == 1
        assert {(each["state"], *each["reasons"]) for each in objects(done).values()} == {
            ("offline", "the simulation is over")
        }


def browse(broker):
    """Look at it in a terminal, ask one agent, and leave; the terminal is as it was before."""
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    before = termios.tcgetattr(theirs)
    viewer = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "fleet", "--host", broker.host, "--port", str(broker.port)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": "/usr/bin", "TERM": "xterm-256color", "USER": "tester"},
    )
    try:
        await_screen(terminal, f"{AGENTS} agents")
        os.write(terminal, b"t")
        await_screen(terminal, "ask sim-")
        os.write(terminal, b"hello\r")
        await_screen(terminal, "This answer is made up : no model")
        os.write(terminal, b"q")
        assert viewer.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        viewer.kill()
        viewer.wait(10)
        os.close(terminal)
        os.close(theirs)


def await_screen(terminal, text):
    """Read what a terminal is sent until it holds a text."""
    seen = ""
    os.set_blocking(terminal, False)

    def there():
        nonlocal seen
        try:
            seen = (seen + os.read(terminal, 65_536).decode(errors="replace"))[-100_000:]
        except BlockingIOError:
            return False
        return text in seen

    wait_for(there, f"{text!r} on the screen")


def test_without_a_broker_it_says_so(monkeypatch):
    monkeypatch.setattr("edge_agent.cli.fleet.CONNECT_S", 0.3)
    done = CliRunner().invoke(app, ["fleet", "--once", "--host", "127.0.0.1", "--port", "1"])
    assert done.exit_code == 3
    assert "no broker at 127.0.0.1:1" in done.output
