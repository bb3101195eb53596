"""What it costs to know how the agent is: one snapshot, and the thread that looks and reports."""

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase
from edge_agent.health.condition import Condition
from edge_agent.health.counters import Counters
from edge_agent.health.snapshot import Snapshots
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.payloads import EngineReading
from edge_agent.protocol.topics import Topics
from edge_agent.serving.reporter import Reporter
from hardware.probe import probe
from tests.bench.rig import TELEMETRY_S, Figure, arguments, report, spread

SNAPSHOTS = 300


class Silence:
    """An outbox with nothing in it; `sizes` takes those of what is said, in bytes."""

    waiting = in_flight = dropped = 0

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    def say(self, publication: Publication) -> None:
        self._sizes.append(len(publication.payload))


def main() -> None:
    options = arguments(__doc__, seconds=60.0).parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as name:
        folder = Path(name)
        snapshots = Snapshots(Path("/"), memory=probe().memory, state_dir=folder, generated=lambda: 0)
        figures = spread(
            "a snapshot, processor time", [snapshot_ms(snapshots) for _ in range(SNAPSHOTS)], "ms", at_most=5
        )
        figures += reporting(snapshots, folder, options.seconds)
    report(
        "Telemetry",
        figures,
        as_json=options.json,
        notes=[f"{options.seconds:.0f} s, telemetry every {TELEMETRY_S} s as by default; percent of one core"],
    )


def snapshot_ms(snapshots: Snapshots) -> float:
    begun_s = time.process_time()
    snapshots.take(snapshots.look())
    return (time.process_time() - begun_s) * 1000


def reporting(snapshots: Snapshots, folder: Path, seconds: float) -> list[Figure]:
    """Let a reporter with a real queue work; read what its thread, and the queue's for it, ran."""
    sizes: list[int] = []
    engine = EngineStatus("phi", "onnx", Phase.READY)
    store = Store(Queue(folder / "queue.db"), keep_finished_s=1e9, keep_finished_jobs=10**9)
    reporter = Reporter(
        topics=Topics("edge/v1", "edge-01"),
        boot_id="b" * 32,
        period_s=TELEMETRY_S,
        snapshots=snapshots,
        counters=Counters(["phi"]),
        store=store,
        outbox=Silence(sizes),
        engines=SimpleNamespace(statuses=lambda: [engine]),
        link=SimpleNamespace(connected=True, connections=1),
        restraint=SimpleNamespace(look=lambda _seen: None, level=0),
        watches=tuple,
    )
    report = SimpleNamespace(
        condition=lambda: Condition("ready"),
        reading=lambda each, _counts: EngineReading(model=each.model, state=each.phase, running=0),
    )
    store.start()
    reporter.start(report)
    threads = {"reporter": reporter._thread, "store, for it": store._thread}
    before_s = {name: ran_s(thread) for name, thread in threads.items()}
    time.sleep(seconds)
    shares = {name: 100 * (ran_s(thread) - before_s[name]) / seconds for name, thread in threads.items()}
    reporter.stop()
    store.stop()
    return [
        *(Figure(f"thread {name}", share, "%", at_most=0.2) for name, share in shares.items()),
        Figure("a report, largest", max(sizes), "bytes"),
    ]


def ran_s(thread) -> float:
    """Return the processor seconds of a thread of ours (the kernel's Documentation/scheduler/sched-stats.rst)."""
    text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text(encoding="ascii")
    return int(text.split()[0]) / 1e9


if __name__ == "__main__":
    main()
