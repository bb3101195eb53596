"""A queue with many waiting jobs, written through the queue's own code."""

from pathlib import Path

from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.request import Request

MODEL = "model"
AT_ONCE = 1000
TTL_S = 86_400
PRIORITIES = 10


def fill(file: Path, jobs: int) -> None:
    """Add so many queued jobs of all priorities, for the model a rig serves."""
    with Queue(file) as queue:
        unsynced(queue)
        for first in range(0, jobs, AT_ONCE):
            with queue.transaction():
                for number in range(first, min(jobs, first + AT_ONCE)):
                    queue.accept(_request(number), Envelope("backlog", ttl_s=TTL_S), model=MODEL)


def unsynced(queue: Queue) -> None:
    """Let a queue leave its writes to the operating system, so that the disk is not what is measured."""
    queue._db.connection.execute("PRAGMA synchronous = OFF")


def _request(number: int) -> Request:
    return Request(
        job_id=f"job-{number:08d}",
        prompt=f"How is pump {number}, and what did it do since the last shift? Answer in one sentence.",
        max_tokens=8,
        priority=number % PRIORITIES,
        ttl_s=TTL_S,
    )
