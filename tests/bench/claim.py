"""What the queue's statements cost with 100,000 waiting jobs, each in a transaction that does not wait for the disk.

`claim` gives a job to an engine; `commit of nothing` is the transaction around it; the others are what else happens on
the queue's thread while jobs wait: a new job, its place in the queue, expiry at every commit, telemetry's counts.
"""

import tempfile
import time
from pathlib import Path

from edge_agent.jobs.queue import Queue
from edge_agent.jobs.request import Request
from tests.bench.backlog import MODEL, TTL_S, Envelope, fill, unsynced
from tests.bench.rig import arguments, report, spread


def times_ms(queue: Queue, times: int, act) -> list[float]:
    """Return how long each of so many transactions took; `act` gets the number of its turn."""
    took = []
    for turn in range(times):
        begun_s = time.perf_counter()
        with queue.transaction():
            act(turn)
        took.append((time.perf_counter() - begun_s) * 1000)
    return took


def main() -> None:
    options = arguments(__doc__, jobs=100_000, times=1000).parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as name:
        file = Path(name) / "queue.db"
        fill(file, options.jobs)
        with Queue(file) as queue:
            unsynced(queue)
            figures = measure(queue, options.times)
            left = queue.backlog.jobs
    report(
        f"The queue with {options.jobs:,} waiting jobs",
        figures,
        as_json=options.json,
        notes=[f"{options.times} times each, synchronous = OFF; {left:,} unfinished jobs at the end"],
    )


def measure(queue: Queue, times: int):
    def accept(turn: int) -> None:
        request = Request(job_id=f"new-{turn}", prompt="And this one?", priority=turn % 10)
        queue.accept(request, Envelope("late", ttl_s=TTL_S), model=MODEL)

    waiting, place = queue.overview.first(MODEL, 20), queue.overview.position
    return [
        *spread("claim", times_ms(queue, times, lambda _turn: queue.claim(MODEL, idle=True)), "ms", at_most=1),
        *spread("commit of nothing", times_ms(queue, times, lambda _turn: None), "ms"),
        *spread("accept", times_ms(queue, times, accept), "ms"),
        *spread("expire, with none to expire", times_ms(queue, times, lambda _turn: queue.expire()), "ms"),
        *spread("place of a job", times_ms(queue, times, lambda turn: place(waiting[turn % 20], 20)), "ms"),
        *spread("counts for telemetry", times_ms(queue, 20, lambda _turn: queue.overview.unfinished()), "ms"),
        *spread("oldest for telemetry", times_ms(queue, 20, lambda _turn: queue.overview.oldest_age_s()), "ms"),
    ]


if __name__ == "__main__":
    main()
