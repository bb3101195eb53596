"""What was erased is in no file: not in the log, not in freed pages, not in the gaps of others."""

import contextlib
import json
import random
import re
import shutil
import sqlite3

import pytest
from fakes import Time, accept, claim, flush, request

from edge_agent.jobs.cleaning import ERASED_S, TOLD_S, Cleaning
from edge_agent.jobs.job import Destination, JobState, Outcome
from edge_agent.jobs.leftovers import LOG_PAGES
from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.store import Store

SECRET = re.compile(rb"SECRET-(\d+)-")
ANSWER = Destination(topic="answers", qos=0, retain=False, format="text")


@pytest.fixture
def machine():
    return Time()


@pytest.fixture
def queue(tmp_path, machine):
    with machine.queue(tmp_path) as opened:
        yield opened


def secrets(folder):
    """Return the numbers of the secrets that stand in any file of a folder."""
    return {int(number) for file in folder.rglob("*") if file.is_file() for number in SECRET.findall(file.read_bytes())}


class Workload:
    """Jobs of every length, each with a secret of its own in all that people wrote, that end in every way."""

    def __init__(self, queue, seed):
        self.queue = queue
        self.chance = random.Random(seed)
        self.alive = {}
        self.count = 0

    def secret(self, number):
        return f"SECRET-{number}-" * self.chance.choice((1, 3, 10, 20, 50, 100, 150, 300))

    def accept(self):
        self.count += 1
        number, watched = self.count, self.chance.random() < 0.4
        fields = {
            "prompt": None,
            "messages": [{"role": role, "content": self.secret(number)} for role in ("system", "user")],
            "metadata": {"note": f"SECRET-{number}-"},
            "response_format": {"type": "regex", "regex": f"SECRET-{number}-"},
        }
        asked = request(f"j-{number}", **fields)
        place = {"source": "cam", "answer": ANSWER} if watched else {}
        pool = "hall" if not watched and self.chance.random() < 0.5 else None
        self.alive[number] = self.queue.accept(asked, Envelope("c", 600.0, pool, **place), model="phi")

    def run(self, number):
        job = self.queue.claim("phi", idle=True)
        if job is None:
            return
        number = int(job.job_id[2:])
        self.alive[number] = job
        if self.chance.random() < 0.8:
            state = self.chance.choice((JobState.SUCCEEDED, JobState.FAILED))
            self.alive[number] = self.queue.end(job, state, Outcome(text=self.secret(number)))
            if job.watched and state is JobState.FAILED:
                del self.alive[number]

    def fail(self, number):
        job = self.queue.end(self.alive[number], JobState.FAILED, Outcome(text=self.secret(number)))
        if job is not None and job.watched:
            del self.alive[number]
        elif job is not None:
            self.alive[number] = job

    def deliver(self, number):
        due = self.queue.results.owed(50)
        for owed in self.chance.sample(due, min(3, len(due))):
            self.queue.results.delivered(owed)
            number = int(owed.job.job_id[2:])
            if owed.job.watched:
                del self.alive[number]
            elif self.chance.random() < 0.7:
                self.queue.results.erase(owed.job)
                del self.alive[number]

    def cancel(self, number):
        job = self.alive[number]
        self.queue.cancel(job.client, job.job_id)
        if job.watched and job.state is JobState.QUEUED:
            del self.alive[number]
            return
        with contextlib.suppress(KeyError):
            self.alive[number] = self.queue.overview.named(job.job_id)[0]

    def hand_back(self, number):
        if self.queue.hand_back(self.alive[number]):
            del self.alive[number]

    def turn(self):
        acts = (self.run, self.fail, self.fail, self.deliver, self.deliver, self.cancel, self.hand_back)
        with self.queue.transaction():
            if not self.alive or self.chance.random() < 0.45:
                self.accept()
            else:
                self.chance.choice(acts)(self.chance.choice(sorted(self.alive)))


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_erased_is_in_no_file(queue, tmp_path, seed):
    """Of jobs long and short that come, run, are delivered, canceled and handed back, the living alone are there."""
    work = Workload(queue, seed)
    for turn in range(400):
        work.turn()
        if turn % 20 == 19:
            assert queue.leftovers.clear(truncate=True) is None
            assert secrets(tmp_path) == set(work.alive)
    assert queue._db.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with queue.transaction():
        assert queue.forget_ended(-1.0) > 0
    queue.leftovers.clear(truncate=True)
    left = {number for number in work.alive if queue.overview.named(f"j-{number}")}
    assert secrets(tmp_path) == left


@pytest.mark.parametrize("seed", range(3))
def test_the_gaps_that_sqlite_leaves_in_pages_hold_nothing(queue, tmp_path, seed):
    """Short rows are moved from page to page most often; of these the old bytes stay, whatever SQLite is told."""
    chance, alive, ask = random.Random(seed), [], queue._db.connection.execute
    ask("CREATE TABLE texts (row INTEGER PRIMARY KEY, text TEXT)")
    for number in range(900):
        if chance.random() < 0.5:
            ask("INSERT INTO texts VALUES (?, ?)", (number, f"SECRET-{number}-" * chance.choice((1, 3, 30, 60))))
            alive.append(number)
        elif alive:
            gone = alive.pop(chance.randrange(len(alive)))
            erasing = ("DELETE FROM texts WHERE row = ?", "UPDATE texts SET text = '' WHERE row = ?")
            ask(chance.choice(erasing), (gone,))
        if number % 100 == 99:
            assert queue.leftovers.clear(truncate=True) is None
            assert secrets(tmp_path) == set(alive)
            assert ask("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_what_a_failed_transaction_wrote_is_in_no_file(queue, tmp_path):
    """So long a transaction that SQLite writes it to the log before it is known to fail."""

    def fail():
        for number in range(40):
            queue.accept(request(f"j-{number}", prompt=f"SECRET-{number}-" * 9000), Envelope("c", 600.0), model="phi")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), queue.transaction():
        fail()
    assert secrets(tmp_path)
    assert queue.leftovers.pending
    assert queue.leftovers.clear(truncate=True) is None
    assert secrets(tmp_path) == set()


def test_what_a_killed_agent_left_is_removed_by_the_next(tmp_path, machine):
    """Erased and not cleaned yet when the power went: the next start does that first."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    with machine.queue(before) as queue:
        work = Workload(queue, 7)
        for _ in range(200):
            work.turn()
        shutil.copytree(before, after)
        alive = set(work.alive)
    assert secrets(after) > alive
    with machine.queue(after) as queue:
        store = Store(queue, keep_finished_s=1e9, keep_finished_jobs=10**6)
        store.start()
        flush(store)
        store.ask(lambda queue: None)
        store.stop()
        assert secrets(after) == alive


def test_cleaning_waits_for_a_reader_and_says_so(queue, tmp_path, machine, capsys):
    """Another program that reads keeps the log from being emptied: it is tried again each second, and told once."""
    cleaning = Cleaning(queue.leftovers, now_s=machine.now_s)
    for _ in range(2):
        cleaning.turn()
        machine.pass_s(ERASED_S)
    assert cleaning.wait_s is None
    job = accept(queue, prompt="SECRET-1-")
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM jobs").fetchone()
        with queue.transaction():
            queue.cancel(job.client, job.job_id)
            (owed,) = queue.results.owed(1)
            queue.results.delivered(owed)
            queue.results.erase(owed.job)
        for _ in range(2 * int(TOLD_S)):
            cleaning.turn()
            assert 0 <= cleaning.wait_s <= ERASED_S
            machine.pass_s(ERASED_S)
        assert secrets(tmp_path) == {1}
        assert capsys.readouterr().err.count("store.unerased") == 1
    cleaning.turn()
    assert secrets(tmp_path) == set()
    assert cleaning.wait_s is None
    assert "store.erased" in capsys.readouterr().err


def test_without_erasures_the_log_is_emptied_when_it_is_long(queue, tmp_path, machine):
    """As SQLite itself would do; what it holds of the disk is bounded."""
    cleaning = Cleaning(queue.leftovers, now_s=machine.now_s)
    for _ in range(2):
        cleaning.turn()
        machine.pass_s(ERASED_S)
    sizes = []
    for number in range(300):
        accept(queue, f"j-{number}", prompt="x" * 40_000)
        cleaning.turn()
        sizes.append((tmp_path / "queue.db-wal").stat().st_size)
    assert LOG_PAGES * 4096 < max(sizes) < 1.2 * LOG_PAGES * 4120
    assert (tmp_path / "queue.db").stat().st_size > 2 * max(sizes)


def test_a_queue_that_is_closed_holds_nothing_of_what_was_erased_in_it(tmp_path, machine):
    """Also when another program has it open, so that the log stays."""
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        with Queue(tmp_path / "queue.db", clock=machine.clock) as queue:
            other.execute("SELECT count(*) FROM jobs").fetchone()
            accept(queue, prompt="SECRET-1-", metadata=json.loads('{"note": "SECRET-2-"}'))
            job = claim(queue)
            with queue.transaction():
                queue.end(job, JobState.SUCCEEDED, Outcome(text="SECRET-3-"))
                queue.results.delivered(*queue.results.owed(1))
                queue.forget_ended(-1.0)
        assert (tmp_path / "queue.db-wal").exists()
        assert secrets(tmp_path) == set()
