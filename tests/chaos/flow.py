"""Jobs that flow while things break, and what must be true of them afterwards."""

import contextlib
import json
import os
import random
import sqlite3
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from unittest import mock

from running import PATIENCE_S, Listener, requester, wait_for

from edge_agent.mqtt import redial
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.payloads import Chunk, Result
from edge_agent.protocol.topics import Command, Topics

AGENT = "edge-01"
RESULTS = "edge/v1/clients/+/inbox/+/+/result"
OPEN_MAX = 6
"""Jobs one requester keeps under way: two of them keep four lanes busy and a few jobs waiting."""
TERMINAL = {"succeeded", "failed", "canceled", "expired"}


def number(name, default):
    """Return a number from the environment: short in CI, long for `make chaos`."""
    return int(os.environ.get(name, default))


@dataclass(frozen=True)
class Ended:
    """What a requester saw of a job: its result, and the text of the final attempt if no chunk of it was missing."""

    client: str
    job_id: str
    max_attempts: int
    result: Result
    streamed: str | None


class Requester:
    """Keeps some jobs under way, of all lengths; cancels some, sends some twice or thrice; follows each to its end."""

    def __init__(self, name, client, *, repeat, seed):
        self.name = name
        self.ended = []
        self._client = client
        self._repeat = repeat
        self._chance = random.Random(f"{seed}/{name}")
        self._open = []
        self._count = 0
        self._pause = threading.Event()

    def flow(self, stop):
        """Send and follow jobs until told to stop, then follow the rest to its end. Runs on a thread of its own."""
        while not stop.is_set():
            if len(self._open) < OPEN_MAX:
                self._submit()
            self._reap()
            self._pause.wait(0.005)
        for handle in self._open:
            handle.result(PATIENCE_S)
        self._reap()

    def _submit(self):
        self._count += 1
        handle = self._client.submit(
            AGENT,
            job_id=f"{self.name}-{self._count}",
            prompt=f"Number {self._count}",
            max_tokens=self._chance.randint(1, 200),
            max_attempts=self._chance.randint(1, 4),
            priority=self._chance.randint(3, 6),
        )
        if self._chance.random() < 0.15:
            handle.cancel()
        if self._chance.random() < 0.15:
            self._repeat(self.name, handle.payload)
        self._open.append(handle)

    def _reap(self):
        for handle in [handle for handle in self._open if handle.done]:
            self._open.remove(handle)
            self.ended.append(self._see(handle))
            if self._chance.random() < 0.1:
                self._repeat(self.name, handle.payload)

    def _see(self, handle):
        result = handle.result(0)
        chunks = [update for update in handle.updates(PATIENCE_S) if isinstance(update, Chunk)]
        final = sorted((c for c in chunks if c.attempt == result.attempt), key=lambda chunk: chunk.seq)
        whole = [chunk.seq for chunk in final] == list(range(result.last_seq + 1))
        streamed = "".join(chunk.text for chunk in final) if whole else None
        return Ended(self.name, handle.job_id, handle.request.max_attempts, result, streamed)


@contextlib.contextmanager
def flowing(brokers, *, watched, seed, **access):
    """Let a requester per named broker (or way to it) send jobs inside the block, then wait until all have ended.

    Yields what was seen, complete once the block has ended; `watched` is the broker on which results are observed.
    """
    seen = Seen()
    with contextlib.ExitStack() as stack:
        # A link that is cut again and again stays away for up to a minute; the tests cut it all the time.
        stack.enter_context(mock.patch.object(redial, "RETRY_MAX_S", 1.0))
        observer = stack.enter_context(Listener(watched, RESULTS))

        def repeat(client, payload):
            topic = Topics("edge/v1", AGENT).command(Command.JOB, client)
            observer.link.publish(Publication(topic, payload, qos=1, expiry_s=600))

        requesters = [
            Requester(name, stack.enter_context(requester(broker, name, **access)), repeat=repeat, seed=seed)
            for name, broker in brokers.items()
        ]
        pool = stack.enter_context(ThreadPoolExecutor(thread_name_prefix="requester"))
        stop = threading.Event()
        futures = [pool.submit(each.flow, stop) for each in requesters]
        try:
            yield seen
        finally:
            stop.set()
        for future in futures:
            future.result(2 * PATIENCE_S)
        seen.ended = [ended for each in requesters for ended in each.ended]
        seen.results = observer.of("result")
        seen.topics = [inbound.topic for inbound, _ in observer.messages]


class Seen:
    """What was seen from outside: jobs as they ended, results as they were published."""

    def __init__(self):
        self.ended = []
        self.results = []
        self.topics = []

    def summary(self):
        """Say what was seen, for the test's output."""
        states = dict(Counter(ended.result.state for ended in self.ended))
        attempts = max(ended.result.attempt for ended in self.ended)
        streamed = sum(ended.streamed is not None for ended in self.ended)
        return f"{len(self.ended)} jobs {states}, up to {attempts} attempts, {streamed} streamed without a gap"


def rows(state_dir):
    """The jobs in an agent's database, as dicts."""
    with contextlib.closing(sqlite3.connect(f"file:{state_dir / 'queue.db'}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute("SELECT * FROM jobs ORDER BY row")]


def check(seen, state_dir):
    """Fail unless every job was accepted once, ended once, kept to its strikes, and its requester knows."""
    stored = {(row["client"], row["job_id"]): row for row in rows(state_dir)}
    assert set(stored) == {(ended.client, ended.job_id) for ended in seen.ended}
    for ended in seen.ended:
        check_job(ended, stored[ended.client, ended.job_id])
    check_published(seen, stored)
    assert any(ended.streamed for ended in seen.ended), "no job was streamed to its end"


def check_job(ended, row):
    """Fail unless row and requester agree on an outcome that a job may have here."""
    result, outcome = ended.result, json.loads(row["outcome"])
    assert row["state"] in TERMINAL
    assert (row["state"], row["attempt"]) == (result.state, result.attempt), row["job_id"]
    assert row["strikes"] <= row["max_attempts"] == ended.max_attempts
    assert outcome.get("text", "") == result.text
    match row["state"]:
        case "failed":
            assert (result.error.code, row["strikes"]) == ("engine_died", row["max_attempts"])
        case "canceled":
            assert result.error.code == "canceled"
        case state:
            assert state == "succeeded"
            assert ended.streamed in (None, result.text), row["job_id"]


def check_published(seen, stored):
    """Fail when two results of one job differed."""
    for topic, result in zip(seen.topics, seen.results, strict=True):
        client, job_id = topic.split("/")[3], result["job_id"]
        row = stored[client, job_id]
        assert (result["state"], result["attempt"]) == (row["state"], row["attempt"]), job_id


def said_since(log, offset, event):
    """Whether the daemon has logged an event after an offset of its log."""
    with log.open("rb") as file:
        file.seek(offset)
        return f'"event": "{event}"'.encode() in file.read()


@contextlib.contextmanager
def expect(agent, *events):
    """Wait, after the block, until the daemon has logged each of these events since the block began."""
    offset = agent.log.stat().st_size
    yield
    for event in events:
        wait_for(lambda event=event: said_since(agent.log, offset, event), f"{event} in the log")
