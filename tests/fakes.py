"""Stand-ins for what tests must be able to script: time, the connection, the models; and jobs to work with."""

import json
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.clock import Clock
from edge_agent.jobs.database import DiskFullError
from edge_agent.jobs.job import Failure, Outcome
from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.request import Attached, Request
from edge_agent.protocol.messages import Publication
from hardware.machine import Board, Cpu, Machine, Memory

PATIENCE_S = 10.0
"""Bound on every wait for another thread."""

ENGINE_DIED = Failure.because(Code.ENGINE_DIED, "the engine ended by itself")
ANSWER = Outcome(text="The pump is off.", finish_reason="stop", last_seq=2)


@cache
def _empty_database():
    """Return the file of a queue as it is first made, which takes several waits for the disk."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "queue.db"
        Queue(file).close()
        return file.read_bytes()


def counts(queue):
    """Return how many jobs of a queue are in each state, by the table itself."""
    return dict(queue._db.connection.execute("SELECT state, count(*) FROM jobs GROUP BY state"))


class Time:
    """A machine's clocks, moved by hand: seconds since boot, the wall clock and the identity of the boot."""

    def __init__(self, *, boottime_s=100.0, wall_s=1_800_000_000.0, boot="first"):
        self.boottime_s, self.wall_s, self.boot = boottime_s, wall_s, boot

    def pass_s(self, seconds):
        """Let time pass."""
        self.boottime_s += seconds
        self.wall_s += seconds

    def reboot(self, *, away_s):
        """Start the machine again after it was off for a while."""
        self.wall_s += away_s
        self.boottime_s, self.boot = 1.0, self.boot + "'"

    def now_s(self):
        """Return a monotonic reading."""
        return self.boottime_s

    def clock(self, anchor=None):
        """Return the queue's clock on this machine."""
        return Clock(anchor, boot=lambda: self.boot, boottime=lambda: self.boottime_s, wall=lambda: self.wall_s)

    def queue(self, folder, **settings):
        """Open a queue that runs on this time, and that never waits for the disk."""
        file = folder / "queue.db"
        if folder.exists() and not file.exists():
            file.write_bytes(_empty_database())
        queue = Queue(file, clock=self.clock, **settings)
        queue._db.connection.execute("PRAGMA synchronous = OFF")
        return queue


def request(job_id="job-1", **fields):
    """Return a request, of the defaults but for `fields`."""
    return Request.model_validate_json(json.dumps({"job_id": job_id, "prompt": "What is on the belt?"} | fields))


def accept(queue, job_id="job-1", *, client="line-3", model="phi", ttl_s=600.0, pool=None, here=None, **fields):
    """Store a request in a transaction of its own; return its job. `here`: the hashes of its images."""
    asked = request(job_id, **fields)
    with queue.transaction():
        return queue.accept(asked, Envelope(client, ttl_s, pool), model=model, attached=here and Attached(asked, here))


def claim(queue, *, model="phi", idle=True):
    """Claim in a transaction of its own."""
    with queue.transaction():
        return queue.claim(model, idle=idle)


def find(queue, job_id="job-1", client="line-3"):
    """Return a job as it is now."""
    with queue.transaction():
        return queue.recall(client, job_id)


class FakeLink:
    """A connection that keeps what it was given; `publish` answers with message ids 1, 2, …

    With `answer` set, QoS 1 messages are answered with that reason at once, through `answered`.
    """

    def __init__(self, *, connected=True, packet_bytes_max=None):
        self.connected = connected
        self.packet_bytes_max = packet_bytes_max
        self.published = []
        self.acked = []
        self.journal = []
        self.answer = None
        self.answered = lambda mid, reason: None
        self.changed = threading.Condition()

    def publish(self, publication: Publication):
        """Take a message; return its id, its place in `published`."""
        with self.changed:
            self.published.append(publication)
            mid = len(self.published)
            self.changed.notify_all()
        if self.answer is not None and publication.qos:
            self.answered(mid, self.answer)
        return mid

    def ack(self, receipt):
        """Take an acknowledgement."""
        with self.changed:
            self.acked.append(receipt)
            self.changed.notify_all()

    def of(self, leaf):
        """Return the published messages of a kind: `status`, `chunk`, `result`, …"""
        with self.changed:
            return [each for each in self.published if each.topic.rsplit("/", 1)[1] == leaf]

    def wait_for(self, condition, what):
        """Wait until a condition on this link holds; fail with what was waited for."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S), f"waited {PATIENCE_S:.0f} s for {what}"


class FakeRoster:
    """Models by name; the first is `auto`."""

    def __init__(self, *names, images=0):
        self.names, self.images = names, images

    def resolve(self, model, *, images=0):
        """Return the name of a model."""
        if images > self.images:
            raise EdgeAgentError(Code.UNSUPPORTED, "messages: the model takes fewer images")
        if not self.names:
            raise EdgeAgentError(Code.MODEL_MISSING, "this agent serves no model")
        if model == "auto":
            return self.names[0]
        if model not in self.names:
            raise EdgeAgentError(Code.UNKNOWN_MODEL, "model: this agent serves another")
        return model


class FullDisk:
    """Lets a queue's transactions fail at their end while `full`."""

    def __init__(self, queue, monkeypatch):
        self.full = False
        self._refusals = threading.Semaphore(0)
        self._transaction = queue.transaction
        monkeypatch.setattr(queue, "transaction", self._bounded)

    @contextmanager
    def _bounded(self):
        with self._transaction() as changes:
            yield changes
            if self.full:
                self._refusals.release()
                raise DiskFullError("database or disk is full")

    def wait_refusals(self, count):
        """Wait until so many transactions more have failed."""
        for _ in range(count):
            assert self._refusals.acquire(timeout=PATIENCE_S), "waited for a transaction to fail"


def flush(store):
    """Wait until a store has done everything it was given so far."""
    store.ask(lambda _queue: None, timeout_s=PATIENCE_S)


GIB = 2**30


def machine(free_gib=16.0, *, limit_gib=None, bandwidth_gb_per_s=None, accelerators=(), compatible=()):
    """A machine with three cores, so much memory free, and what else a decision looks at."""
    return Machine(
        board=Board(None, None, compatible),
        cpu=Cpu(None, None, None, None, None, None, granted_cores=3),
        memory=Memory(
            total_bytes=None,
            available_bytes=None if free_gib is None else int(free_gib * GIB),
            swap_bytes=None,
            limit_bytes=None if limit_gib is None else int(limit_gib * GIB),
            bandwidth_bytes_per_s=None if bandwidth_gb_per_s is None else bandwidth_gb_per_s * 1e9,
        ),
        accelerators=accelerators,
        kernel=None,
    )
