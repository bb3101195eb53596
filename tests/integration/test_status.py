"""`edge-agent status`: what a person sees of a running agent, of a machine in trouble, and of none."""

import json
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from running import AgentProcess, faulty, requester

from edge_agent.cli.status import shown
from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState, Standing
from edge_agent.protocol.payloads import AcceleratorReading, EngineReading, Telemetry


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "status", "--state-dir", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin", "COLUMNS": "100"},
    )


def test_where_no_agent_runs_it_says_so(tmp_path):
    done = command(tmp_path)
    assert (done.returncode, "no agent runs on" in done.stdout) == (3, True)


@pytest.mark.broker
@pytest.mark.engine
def test_a_running_agent(broker, tmp_path, tiny_model):
    """What it shows is of now, however seldom the agent reports."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2}]
    running = AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, telemetry_s=3600)
    with running as agent, requester(broker) as client:
        agent.wait_said("engine.ready")
        client.submit("edge-01", prompt="How is the pump?", max_tokens=8).result(60)
        state = json.loads(command(agent.state_dir, "--json").stdout)
        assert (state["health"], state["connected"], state["pid"]) == ("ready", True, agent.pid)
        done = command(agent.state_dir)
        assert done.returncode == 0
        for part in ("edge-01  ready", "1 succeeded", "1 accepted, 1 succeeded, 8 tokens", "tiny", "0/2"):
            assert part in done.stdout
        assert agent.stop() == 0
    assert command(agent.state_dir).returncode == 3


@pytest.mark.broker
@pytest.mark.engine
def test_an_agent_that_takes_leave_says_so(broker, tmp_path, tiny_model):
    """Until its last job has ended; a second signal ends that."""
    models = [{"name": "slow", "path": str(tiny_model), "context_tokens": 4096}]
    environ = faulty(FAULTS_BACKEND="metronome:load")
    running = AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, environ=environ)
    with running as agent, requester(broker) as client:
        agent.wait_said("engine.ready")
        client.submit("edge-01", prompt="Tick.", max_tokens=2000)
        agent.wait_said("job.started")
        agent.process.terminate()
        agent.wait_said("agent.stopping")
        state = ask_agent(agent.state_dir, AskState()).state
        assert (state.health, state.telemetry.engines[0].running) == ("draining", 1)
        assert agent.stop() == 0
        assert ask_agent(agent.state_dir, AskState()) is None


@pytest.mark.broker
def test_a_frozen_agent_is_unhealthy_and_soon_told(broker, tmp_path):
    """Nobody waits half a minute for a health check to say so."""
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=[]) as agent:
        agent.wait_said("agent.started")
        agent.process.send_signal(signal.SIGSTOP)
        done = command(agent.state_dir)
        assert (done.returncode, "frozen" in done.stderr, str(agent.pid) in done.stderr) == (1, True, True)
        agent.process.send_signal(signal.SIGCONT)
        assert command(agent.state_dir, "--json").returncode != 3


def printed(state, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(shown(state, None))
    return console.export_text()


@pytest.mark.parametrize("width", [80, 200])
def test_everything_that_is_known_is_shown_and_fits(width):
    engine = EngineReading(
        model="phi-3.5-mini",
        state="ready",
        device="cpu",
        running=1,
        lanes=2,
        anonymous_bytes=5 * 2**30,
        mapped_bytes=2**30,
        prompt_per_second=120.0,
        generate_per_second=12.34,
        first_token_p50_ms=810.0,
        first_token_p95_ms=12_000.0,
        cached_share=0.42,
    )
    away = EngineReading(model="vision", state="unloaded", reason="waits for its turn after phi-3.5-mini", running=0)
    telemetry = Telemetry(
        agent="edge-01",
        version="0.1.0",
        boot_id="b",
        uptime_s=7200.0,
        health="degraded",
        cpu_percent=97.0,
        load_1m=3.5,
        memory_total_bytes=8 * 2**30,
        memory_available_bytes=2**30,
        memory_stall_percent=4.0,
        disk_free_bytes=9 * 2**30,
        hottest="cpu-thermal",
        hottest_celsius=78.0,
        heat_margin_c=2.0,
        slowed=("cooled by cpufreq-cpu0",),
        power_watts=8.3,
        power_of="machine",
        joules_per_token=0.7,
        battery_percent=41.0,
        on_battery=True,
        undervoltage=True,
        accelerators=(AcceleratorReading(name="accel0", busy_percent=25.0, clock_mhz=950.0),),
        queue={"waiting": 0, "queued": 3, "running": 1},
        queue_oldest_s=75.0,
        counters={"succeeded": 12, "completion_tokens": 99},
        lifetime={"accepted": 20, "succeeded": 15, "completion_tokens": 1234},
        outbox_waiting=2,
        outbox_dropped=1,
        reconnects=1,
        engines=(engine, away),
    )
    state = Standing(
        agent="edge-01",
        version="0.1.0",
        pid=7,
        boot_id="b",
        health="degraded",
        reasons=("fewer lanes: cpu-thermal is at 78 °C, its limit is 80 °C",),
        connected=False,
        trouble="the connection was lost: none needed, it is tried again",
        telemetry=telemetry,
    )
    text = printed(state, width)
    assert max(map(len, text.splitlines())) <= width
    for part in (
        "edge-01  degraded  edge-agent 0.1.0, pid 7, up 2.0 h",
        "fewer lanes: cpu-thermal",
        "no connection: the connection was lost",
        "3 queued, 1 running, the oldest for 1.2 min",
        "12 succeeded",
        "20 accepted, 15 succeeded, 1,234 tokens",
        "2 waiting, 1 dropped",
        "97 %, load 3.50",
        "1.0 GiB free of 8.0 GiB, 4 % waiting",
        "9.0 GiB free",
        "78 °C (cpu-thermal, 2 K below its limit), cooled by cpufreq-cpu0",
        "8.3 W (machine), 0.7 J a token",
        "in use, 41 %",
        "gives way",
        "25 % busy, 950 MHz",
        "phi-3.5-mini",
        "810 ms",
        "42 %",
        "6.0 GiB",
        "vision: waits for its turn after phi-3.5-mini",
    ):
        assert part in text, part
