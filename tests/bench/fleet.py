"""What a fleet of simulated agents costs its broker, how fast jobs go through it, and what looking at it takes."""

import argparse
import contextlib
import os
import pty
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from edge_agent.base import log
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import Handle
from edge_agent.fleet.monitor import Monitor
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.protocol.payloads import Result, Status
from tests.bench.rig import Figure, arguments, cpu_s, percentile, report

MIB = 2**20
START_MOST_S = 120.0
ROOT = "edge/v1"


def main() -> None:
    options = arguments(__doc__, agents=300, jobs=1500, open=4, seconds=30.0, period_s=10.0).parse_args()
    log.configure(format="console", level="error")
    with (
        tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as name,
        PrivateBroker(folder=Path(name)) as broker,
        simulation(broker, options) as simulated,
    ):
        agents = await_fleet(broker, options.agents)
        broker_process = psutil.Process(broker.pid)
        figures = [
            *idle(broker_process, simulated, options.seconds),
            *jobs(broker, broker_process, agents, count=options.jobs, open_=options.open),
            *once(broker, options.agents),
            *view(broker, broker_process, options),
        ]
    report(
        f"A fleet of {options.agents} simulated agents on one mosquitto",
        figures,
        as_json=options.json,
        notes=[
            f"telemetry every {options.period_s:g} s; percent of one core",
            f"jobs: {options.jobs}, {options.open} open at once; agents answer at once, so it is what messages take",
            "start of the view: from the start of the process; Python and its imports are in it",
        ],
    )


def command(broker: PrivateBroker, *arguments_: str) -> list[str]:
    where = ("--host", broker.host, "--port", str(broker.port))
    return [sys.executable, "-m", "edge_agent", *arguments_, *where]


@contextlib.contextmanager
def simulation(broker: PrivateBroker, options: argparse.Namespace) -> Iterator[psutil.Process]:
    """Run the agents in a process of their own; they answer a job as soon as they have it."""
    agents, period_s = options.agents, options.period_s
    arguments_ = ("simulate", "--agents", str(agents), "--period-s", str(period_s), "--token-ms", "0")
    process = subprocess.Popen(command(broker, *arguments_), stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def await_fleet(broker: PrivateBroker, agents: int) -> list[str]:
    """Wait until every agent has reported; return the names of those that take jobs."""
    access = Access(broker.host, broker.port, client_id="bench-monitor", clean_start=True)
    end_s = time.monotonic() + START_MOST_S
    with Monitor(access, root=ROOT) as monitor:
        while len(monitor.roster) < agents or not monitor.complete():
            if time.monotonic() > end_s:
                raise TimeoutError(f"{len(monitor.roster)} of {agents} agents came")
            monitor.attend()
            time.sleep(0.01)
        return [each.name for each in monitor.roster if each.health != "unhealthy"]


def idle(broker: psutil.Process, simulated: psutil.Process, seconds: float) -> list[Figure]:
    """Measure the fleet while it only reports."""
    before_s, simulated_before_s, begun_s = cpu_s(broker), cpu_s(simulated), time.monotonic()
    time.sleep(seconds)
    elapsed_s = time.monotonic() - begun_s
    return [
        Figure("broker: processor, nobody looking", 100 * (cpu_s(broker) - before_s) / elapsed_s, "%"),
        Figure("broker: memory", broker.memory_info().rss / MIB, "MiB"),
        Figure("simulation: processor", 100 * (cpu_s(simulated) - simulated_before_s) / elapsed_s, "%"),
        Figure("simulation: memory", simulated.memory_info().rss / MIB, "MiB"),
    ]


def jobs(broker: PrivateBroker, process: psutil.Process, agents: list[str], *, count: int, open_: int) -> list[Figure]:
    """Send jobs to all agents in turn, so many open at once, and time acceptance and result."""
    accepted_ms, result_ms, room = [], [], threading.Semaphore(open_)

    def follow(handle: Handle, sent_s: float) -> None:
        accepted = False
        for update in handle.updates(60):
            if isinstance(update, Status) and not accepted:
                accepted = True
                accepted_ms.append(1000 * (time.monotonic() - sent_s))
            elif isinstance(update, Result):
                result_ms.append(1000 * (time.monotonic() - sent_s))
        room.release()

    before_s, begun_s = cpu_s(process), time.monotonic()
    with EdgeClient(Access(broker.host, broker.port, client_id="bench", clean_start=True)) as client:
        client.wait_connected(START_MOST_S)
        followers = []
        for number in range(count):
            room.acquire()
            sent_s = time.monotonic()
            handle = client.submit(agents[number % len(agents)], prompt="hello", max_tokens=8)
            followers.append(threading.Thread(target=follow, args=(handle, sent_s)))
            followers[-1].start()
        for follower in followers:
            follower.join()
    elapsed_s = time.monotonic() - begun_s
    return [
        Figure("jobs answered", len(result_ms) / elapsed_s, "/s"),
        Figure("job: asked to accepted, median", percentile(accepted_ms, 50), "ms"),
        Figure("job: asked to accepted, p99", percentile(accepted_ms, 99), "ms"),
        Figure("job: asked to result, median", percentile(result_ms, 50), "ms"),
        Figure("job: asked to result, p99", percentile(result_ms, 99), "ms"),
        Figure("broker: processor meanwhile", 100 * (cpu_s(process) - before_s) / elapsed_s, "%"),
    ]


def once(broker: PrivateBroker, agents: int) -> list[Figure]:
    """Time a program that asks for everybody once: what is kept, and when everybody has reported."""
    figures = []
    for name, wait_s in (("all that the broker keeps", "0"), ("a report of every agent too", "60")):
        begun_s = time.monotonic()
        asked = command(broker, "fleet", "--json", "--wait-s", wait_s)
        done = subprocess.run(asked, capture_output=True, text=True, timeout=START_MOST_S, check=False)
        if done.stdout.count("\n") != agents:
            raise ValueError(f"{done.stdout.count(chr(10))} of {agents} agents were printed: {done.stderr}")
        figures.append(Figure(f"fleet --json: {name}", time.monotonic() - begun_s, "s"))
    return figures


def view(broker: PrivateBroker, process: psutil.Process, options: argparse.Namespace) -> list[Figure]:
    """Run the view in a terminal until everybody has reported and somewhat longer."""
    agents, seconds = options.agents, options.seconds
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    begun_s = time.monotonic()
    viewer = subprocess.Popen(
        command(broker, "fleet"),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"},
    )
    try:
        read_until(terminal, f"{agents} agents".encode())
        complete_s = time.monotonic() - begun_s
        looking = psutil.Process(viewer.pid)
        read_for(terminal, options.period_s * 1.2)
        before_s, broker_before_s, at_s = cpu_s(looking), cpu_s(process), time.monotonic()
        read_for(terminal, seconds)
        elapsed_s = time.monotonic() - at_s
        return [
            Figure("view: start to every agent on the screen", complete_s, "s"),
            Figure("view: memory", looking.memory_info().rss / MIB, "MiB"),
            Figure("view: processor", 100 * (cpu_s(looking) - before_s) / elapsed_s, "%"),
            Figure("broker: processor, one looking", 100 * (cpu_s(process) - broker_before_s) / elapsed_s, "%"),
        ]
    finally:
        viewer.kill()
        viewer.wait(10)
        os.close(terminal)
        os.close(theirs)


def read_until(terminal: int, text: bytes) -> None:
    seen, end_s = b"", time.monotonic() + START_MOST_S
    while text not in seen:
        if time.monotonic() > end_s:
            raise TimeoutError(f"{text!r} did not come")
        seen = (seen + os.read(terminal, 65_536))[-200_000:]


def read_for(terminal: int, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        os.read(terminal, 65_536)  # the view draws every second


if __name__ == "__main__":
    main()
