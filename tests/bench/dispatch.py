"""Jobs per second end to end with the smallest answers, and where a job's time goes.

First one job at a time: how long each stage lasts as the requester sees it, how many transactions the queue commits and
how many messages the agent publishes per job. Then many jobs open at once: the rate. `--profile` samples the agent
during that part, which slows it down.
"""

import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import psutil

from edge_agent.protocol.payloads import Chunk, Result, Status
from tests.bench.profile import profiled
from tests.bench.rig import Figure, Rig, arguments, cpu_s, median, model_folder, report, rig
from tests.running import Listener, requester, wait_for

PATIENCE_S = 120.0
STAGES = {
    "asked → queued": ("asked", "queued"),
    "queued → running": ("queued", "running"),
    "running → first chunk": ("running", "chunk"),
    "first chunk → result": ("chunk", "result"),
    "asked → result": ("asked", "result"),
}


def commits(database: Path) -> int:
    """Return how many transactions were committed: `iChange` of the wal-index header (sqlite.org/walformat.html)."""
    with database.with_name(f"{database.name}-shm").open("rb") as index:
        index.seek(8)
        return int.from_bytes(index.read(4), "little")


def moments(client, number: int) -> dict[str, float]:
    """Run one job; return when what was first seen of it, in monotonic seconds."""
    seen = {"asked": time.monotonic()}
    handle = client.submit("edge-01", prompt=f"Job {number}", max_tokens=1)
    for update in handle.updates(PATIENCE_S):
        match update:
            case Status(state=name):
                pass
            case Chunk():
                name = "chunk"
            case Result():
                name = "result"
        seen.setdefault(name, time.monotonic())
    return seen


def one_at_a_time(made: Rig, jobs: int) -> tuple[list[Figure], list[str]]:
    database = made.agent.state_dir / "queue.db"
    with requester(made.broker, "slow") as client, Listener(made.broker, "edge/v1/#") as monitor:
        moments(client, -1)
        before, begun = commits(database), len(monitor.messages)
        seen = [moments(client, number) for number in range(jobs)]
        wait_for(lambda: len(monitor.of("result")) > jobs, "the last result")
        committed = commits(database) - before
        leaves = Counter(
            inbound.topic.rsplit("/", 1)[-1] + (" (event)" if "/evt/jobs/" in inbound.topic else "")
            for inbound, _ in monitor.messages[begun:]
            if "/inbox/" in inbound.topic or "/evt/jobs/" in inbound.topic
        )
    figures = [
        median(name, [1000 * (each[last] - each[first]) for each in seen if first in each and last in each], "ms")
        for name, (first, last) in STAGES.items()
    ]
    figures.append(Figure("transactions per job", committed / jobs, ""))
    said = ", ".join(f"{count / jobs:.1f} {leaf}" for leaf, count in sorted(leaves.items()))
    return figures, [f"one at a time: {jobs} jobs; messages per job: {said}"]


def many_at_once(made: Rig, jobs: int, window: int) -> list[Figure]:
    database, parent = made.agent.state_dir / "queue.db", psutil.Process(made.agent.pid)
    (engine,) = made.agent.engines()
    with requester(made.broker, "fast") as client:
        sides = {"agent": parent, "engine": engine, "requester": psutil.Process()}
        before_s, before = {name: cpu_s(process) for name, process in sides.items()}, commits(database)
        begun_s = time.monotonic()
        open_jobs = []
        for number in range(jobs):
            if len(open_jobs) >= window:
                open_jobs.pop(0).result(PATIENCE_S)
            open_jobs.append(client.submit("edge-01", prompt=f"Job {number}", max_tokens=1))
        for handle in open_jobs:
            handle.result(PATIENCE_S)
        took_s = time.monotonic() - begun_s
    return [
        Figure(f"jobs, {window} open at once", jobs / took_s, "/s"),
        Figure("transactions per job, then", (commits(database) - before) / jobs, ""),
        *(
            Figure(f"processor time of the {name}, then", 1000 * (cpu_s(process) - before_s[name]) / jobs, "ms/job")
            for name, process in sides.items()
        ),
    ]


def main() -> None:
    parser = arguments(__doc__, model="tiny", jobs=2000, window=64, parallel=4)
    parser.add_argument("--profile", action="store_true", help="sample the agent with py-spy")
    options = parser.parse_args()
    with rig(model_folder(options.model), parallel=options.parallel, context_tokens=512) as made:
        parent = made.start()
        figures, notes = one_at_a_time(made, max(10, options.jobs // 10))
        with profiled(parent.pid, made.folder) if options.profile else nullcontext([]) as profile:
            figures += many_at_once(made, options.jobs, options.window)
    report("Dispatch", figures, as_json=options.json, notes=[*notes, f"{options.parallel} lanes", *profile])


if __name__ == "__main__":
    main()
