"""Durable intake over MQTT: jobs per second from the first PUBLISH to the last `queued` status, no engine at work.

The served model's graph is a pipe nobody writes to: it loads for ever, as from a dead disk, while jobs are accepted and
wait. A sender process pushes PUBLISH packets encoded beforehand, as many at once as the broker's receive maximum
allows; a reader process counts `queued` statuses. `--profile` samples the parent meanwhile, which slows it down.
"""

import json
import multiprocessing
import os
import tempfile
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from tests.bench.packets import PUBACK, PUBLISH, SUBACK, Line, publish, receive_maximum, subscribe
from tests.bench.profile import profiled
from tests.bench.rig import Figure, Rig, arguments, cpu_s, model_folder, report, rig, spread, wait_idle
from tests.running import wait_for

CLIENT = "flood"
PATIENCE_S = 300.0
PROMPT = "The pressure at inlet {} rose from 2.1 to 3.4 bar within an hour. What should the operator look at first?"


def never_loading(folder: Path) -> Path:
    """Return a model folder whose graph cannot be read to its end."""
    folder.mkdir()
    tiny = model_folder("tiny")
    for file in tiny.iterdir():
        target = folder / file.name
        os.mkfifo(target) if file.suffix == ".onnx" else target.symlink_to(file)
    return folder


def send(host: str, port: int, packets: list[bytes], line: Connection) -> None:
    """Publish everything when told to; tell when the first left, when the last was acknowledged, and the window."""
    broker = Line(host, port, CLIENT)
    window = receive_maximum(broker.connack)
    line.send(None)
    line.recv()
    begun_s, sent, acknowledged = time.monotonic(), 0, 0
    while acknowledged < len(packets):
        if burst := packets[sent : acknowledged + window]:
            broker.send(b"".join(burst))
            sent += len(burst)
        acknowledged += sum(packet.kind == PUBACK for packet in broker.packets())
    line.send((begun_s, time.monotonic(), window))


def read(host: str, port: int, topic: str, jobs: int, line: Connection) -> None:
    """Count `queued` statuses; tell when the last one came."""
    broker = Line(host, port, "reader", patience_s=PATIENCE_S)
    broker.send(subscribe(topic))
    broker.expect(SUBACK)
    line.send(None)
    queued = 0
    while queued < jobs:
        queued += sum(packet.kind == PUBLISH and b'"state":"queued"' in packet.body for packet in broker.packets())
    line.send(time.monotonic())


def started(name: str, target, *arguments: object) -> tuple[multiprocessing.Process, Connection]:
    """Start a process of the load; return it and its line when it is connected."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*arguments, theirs), name=name, daemon=True)
    process.start()
    heard(ours, name)
    return process, ours


def heard(line: Connection, name: str):
    if not line.poll(PATIENCE_S):
        raise TimeoutError(f"the {name} said nothing for {PATIENCE_S:.0f} s")
    return line.recv()


def fsync_ms(folder: Path, times: int = 200) -> list[float]:
    """Return how long this disk takes to make an append of 4 kB durable."""
    took = []
    descriptor = os.open(folder / "fsync", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(times):
            os.write(descriptor, bytes(4096))
            begun_s = time.perf_counter()
            os.fsync(descriptor)
            took.append((time.perf_counter() - begun_s) * 1000)
    finally:
        os.close(descriptor)
    return took


def encoded(jobs: int) -> list[bytes]:
    """Return the packets of so many different jobs."""
    topic = f"edge/v1/agents/edge-01/cmd/job/{CLIENT}"
    bodies = ({"job_id": f"job-{n:08d}", "prompt": PROMPT.format(n), "max_tokens": 64} for n in range(jobs))
    return [publish(topic, json.dumps(body).encode(), 1 + n % 60_000) for n, body in enumerate(bodies)]


def main() -> None:
    parser = arguments(__doc__, jobs=9000, inflight=0)
    parser.add_argument("--profile", action="store_true", help="sample the agent with py-spy")
    options = parser.parse_args()
    settings = f"max_inflight_messages {options.inflight}" if options.inflight else ""
    with (
        tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as name,
        rig(never_loading(Path(name) / "model"), broker_settings=settings) as made,
    ):
        figures, notes = measure(made, options.jobs, profile=options.profile)
    report("Durable intake over MQTT", figures, as_json=options.json, notes=notes)


def measure(made: Rig, jobs: int, *, profile: bool) -> tuple[list[Figure], list[str]]:
    """Flood the agent; return figures and notes."""
    broker, agent = made.broker, made.agent
    agent.start()
    agent.wait_said("link.up")
    (engine,) = wait_for(agent.engines, "the engine child")
    wait_idle(engine)  # it is at the pipe
    parent, mosquitto = psutil.Process(agent.pid), psutil.Process(broker.pid)
    disk_ms = fsync_ms(agent.state_dir)
    inbox = f"edge/v1/clients/{CLIENT}/inbox/edge-01/+/status"
    reader, heard_line = started("reader", read, broker.host, broker.port, inbox, jobs)
    sender, sent_line = started("sender", send, broker.host, broker.port, encoded(jobs))
    sides = {"agent": parent, "broker": mosquitto} | {each.name: psutil.Process(each.pid) for each in (reader, sender)}
    with profiled(parent.pid, made.folder) if profile else nullcontext([]) as notes:
        before_s = {name: cpu_s(process) for name, process in sides.items()}
        sent_line.send(None)
        begun_s, acknowledged_s, window = heard(sent_line, "sender")
        ended_s = heard(heard_line, "reader")
        busy = {name: cpu_s(process) - before_s[name] for name, process in sides.items() if process.is_running()}
    took_s = ended_s - begun_s
    figures = [
        Figure("jobs accepted", jobs / took_s, "/s", at_least=1000),
        Figure("jobs the broker took from the sender", jobs / (acknowledged_s - begun_s), "/s"),
        *spread("fsync of a 4 kB append here", disk_ms, "ms"),
        *(Figure(f"processor time of the {name}", 1000 * used_s / jobs, "ms/job") for name, used_s in busy.items()),
    ]
    return figures, [f"{jobs} jobs, {took_s:.1f} s, receive maximum of the broker {window}", *notes]


if __name__ == "__main__":
    main()
