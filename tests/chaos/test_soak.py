"""Full load for a while: nothing the agent holds may grow.

SOAK_S sets how long (seconds; the long form is 1800); on a busy machine it lasts until as much was asked as on an idle
one. SOAK_OUT names a file for the samples, one JSON object per line.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import sqlite3
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from running import AgentProcess, requester

from edge_agent.base.errors import EdgeAgentError
from edge_agent.jobs.leftovers import FREE_BYTES
from edge_agent.jobs.queue import ROWS_AT_ONCE
from edge_agent.jobs.store import GROUP_MAX
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.protocol.messages import Publication

SOAK_S = float(os.environ.get("SOAK_S", "120"))
TURNS_MIN = 12_000
"""How much is asked at least. Pools and caches come to their size by what was done, and not by how long that took: the
agent's memory rose by 1.1 % from the 4,000th to the 12,000th, by 0.5 % up to the 36,000th, and stayed."""
PERIOD_S = 1.0
WARM_UP = 1 / 2
"""Share of the run that is not judged: pools, caches and the database come to their size."""
GROWTH_MAX = 0.01
ENGINE_GROWTH_MAX = 0.03 if SOAK_S < 900 else GROWTH_MAX
"""The engine's C heap comes to its size in steps over its first 10,000 generations (measured with the backend alone:
88.1, 89.0, 89.3, 89.7 MB, then flat to 24,000), which the short form does not reach; 1 kB a job would still show."""
KEEP_JOBS = 200
OPEN_MAX = 12
"""Jobs open at once: lanes are always full and some wait."""
JOB_BYTES_MAX = 4096
"""What the longest job takes of the database, with indexes and pages half full: 1.2 kB were seen of the mean one."""
BOUNDS = {
    "log": 8 * 2**20,
    "rows": KEEP_JOBS + ROWS_AT_ONCE + GROUP_MAX + 2 * OPEN_MAX + 100,
    "database": (KEEP_JOBS + ROWS_AT_ONCE + GROUP_MAX + 2 * OPEN_MAX) * JOB_BYTES_MAX,
    "free": 2 * FREE_BYTES,
}
"""What the queue's files hold depends on how many jobs ended since old ones were forgotten, and on how large a
transaction became: on a busy machine both go up in steps. So these have bounds and no rate. A row, or a page, that
stayed of each job would pass them within a minute or two. The rows are those of all tables, a hundred not of jobs."""
LONGEST = 12
"""Sentences in the longest prompt."""
TOKENS_MAX = 48
PATIENCE_S = 60.0
CLIENT = "soak"

pytestmark = [pytest.mark.broker, pytest.mark.engine, pytest.mark.timeout(SOAK_S + 900)]


@dataclass(frozen=True, slots=True)
class Sample:
    """What the agent holds: bytes, and counts of threads and descriptors."""

    agent_rss: int
    engine_rss: int
    agent_threads: int
    engine_threads: int
    agent_descriptors: int
    engine_descriptors: int
    log: int
    rows: int
    database: int
    free: int


def take_sample(agent, engine_pid):
    parent, engine = psutil.Process(agent.pid), psutil.Process(engine_pid)
    return Sample(
        parent.memory_info().rss,
        engine.memory_info().rss,
        parent.num_threads(),
        engine.num_threads(),
        parent.num_fds(),
        engine.num_fds(),
        (agent.state_dir / "queue.db-wal").stat().st_size,
        *database_readings(agent.state_dir / "queue.db"),
    )


def database_readings(file):
    """Return the rows of all tables, and the bytes of the file that are used and those that are free."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        rows = sum(db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables)
        size, pages, free = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
    return rows, (pages - free) * size, free * size


def growth(values):
    """Return by what share a reading grew, the lesser of two robust estimates.

    The one is the Theil-Sen slope (median of the slopes of all pairs) times the length, which steps in the middle
    of a quarter do not fool; the other the median of the last quarter against that of the first.
    """
    thinned = values[:: max(1, len(values) // 200)]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(thinned), 2)]
    by_slope = statistics.median(slopes) * (len(thinned) - 1) / statistics.median(thinned)
    quarter = max(1, len(values) // 4)
    first, last = statistics.median(values[:quarter]), statistics.median(values[-quarter:])
    return min(by_slope, last / first - 1)


class Load:
    """Requesters that never rest: jobs of many lengths, cancels, repeats, and requests that must be refused."""

    def __init__(self, client, link):
        self._client = client
        self._link = link
        self._chance = random.Random(7)
        self._numbers = itertools.count()
        self._open = []
        self.outcomes = Counter()

    def begin(self):
        """Fill every lane with the longest jobs first: the engine's pools then have their final size."""
        for _ in range(2 * OPEN_MAX):
            self._submit(next(self._numbers), LONGEST, tokens=TOKENS_MAX)

    def turn(self):
        """Send one thing, of any kind; jobs make room by waiting for the oldest."""
        kind = self._chance.choices(("job", "cancel", "repeat", "refused", "late cancel"), (70, 10, 8, 8, 4))[0]
        number = next(self._numbers)
        if kind == "refused":
            self._refused(number)
            return
        if kind == "late cancel":
            self._raw("cancel", {"job_id": f"never-{number % 50}"})
            return
        handle = self._submit(number, self._chance.randint(1, LONGEST), tokens=self._chance.randint(1, TOKENS_MAX))
        if kind == "cancel":
            handle.cancel()
        if kind == "repeat":
            self._raw("job", handle.payload)

    def _submit(self, number, length, *, tokens):
        handle = self._client.submit(
            "edge-01",
            job_id=f"job-{number}",
            prompt="Status: " + "temperature 71 C, pump off. " * length,
            max_tokens=tokens,
            temperature=self._chance.choice((0.0, 0.8)),
            metadata={"number": number},
        )
        self._open.append(handle)
        while len(self._open) >= OPEN_MAX:
            self._settle(self._open.pop(0))
        return handle

    def _refused(self, number):
        bodies = (
            {"job_id": f"bad-{number}", "prompt": "x", "max_tokens": 0},
            {"job_id": f"bad-{number}", "prompt": "x", "no_such_field": 1},
            {"job_id": f"bad-{number}", "prompt": "x", "model": "absent"},
            {"job_id": f"job-{max(0, number - 3)}", "prompt": "another job of that id"},
        )
        self._raw("job", self._chance.choice(bodies))

    def _raw(self, command, body):
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._link.publish(Publication(f"edge/v1/agents/edge-01/cmd/{command}/{CLIENT}", payload, qos=1, expiry_s=300))

    def _settle(self, handle):
        try:
            self.outcomes[str(handle.result(PATIENCE_S).state)] += 1
        except EdgeAgentError as error:
            self.outcomes[str(error.code)] += 1

    def finish(self):
        for handle in self._open:
            self._settle(handle)


@contextlib.contextmanager
def plain_link(broker):
    """A connection that publishes what EdgeClient would not."""
    link = Link(Access(broker.host, broker.port, client_id="soak-plain", clean_start=True), subscriptions=())
    link.on_received.connect(lambda _inbound, receipt: receipt.acknowledge())
    link.start()
    try:
        assert link.wait_connected(PATIENCE_S)
        yield link
    finally:
        link.stop()


@contextlib.contextmanager
def sampling(agent, engine_pid, samples):
    """Sample every second while the block runs."""
    over = threading.Event()

    def watch():
        while not over.wait(PERIOD_S):
            samples.append(take_sample(agent, engine_pid))

    thread = threading.Thread(target=watch, name="samples")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_under_full_load_nothing_the_agent_holds_grows(broker, tmp_path, demo_model):
    """Memory, threads, descriptors and database stay as they are after warm-up, under jobs, cancels and refusals."""
    models = [{"name": "demo", "path": str(demo_model), "parallel": 4, "context_tokens": 1024, "threads": 1}]
    extra = f"[queue]\nkeep_finished_jobs = {KEEP_JOBS}\n"
    samples = []
    with AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=extra) as agent:
        agent.wait_said("engine.ready")
        (engine,) = agent.engines()
        with requester(broker, CLIENT) as client, plain_link(broker) as link:
            load = Load(client, link)
            end_s = time.monotonic() + SOAK_S
            load.begin()
            with sampling(agent, engine.pid, samples):
                turns = 0
                while time.monotonic() < end_s or turns < TURNS_MIN:
                    load.turn()
                    turns += 1
            load.finish()
        assert agent.engines() == [engine]
        assert agent.stop() == 0
        assert not agent.said("thread.crashed")
    if out := os.environ.get("SOAK_OUT"):
        Path(out).write_text("".join(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in samples))
    judged = samples[int(len(samples) * WARM_UP) :]
    readings = {field.name: [getattr(sample, field.name) for sample in judged] for field in dataclasses.fields(Sample)}
    most = {name: max(readings.pop(name)) for name in BOUNDS}
    assert not {name: value for name, value in most.items() if value > BOUNDS[name]}
    grown = {name: growth(values) for name, values in readings.items()}
    assert set(load.outcomes) >= {"succeeded", "canceled"}, load.outcomes
    allowed = dict.fromkeys(grown, GROWTH_MAX) | {"engine_rss": ENGINE_GROWTH_MAX}
    too_much = {name: f"{share:.1%}" for name, share in grown.items() if share >= allowed[name]}
    assert not too_much, (judged[0], judged[-1])
