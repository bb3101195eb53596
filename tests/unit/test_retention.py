"""What is kept of ended jobs: how much, whose goes first, and that the file gives its room back."""

import random
import sqlite3

import pytest
from fakes import ANSWER, Time, accept, claim, find, request

from edge_agent.base.errors import EdgeAgentError
from edge_agent.jobs.database import SQL
from edge_agent.jobs.job import JobState, Outcome
from edge_agent.jobs.leftovers import FREE_BYTES
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.retention import AT_ONCE, LEAST_BYTES, Allowance, RetentionBounds

MB = 10**6


@pytest.fixture
def machine():
    return Time()


def bounded(total_bytes, requester_bytes):
    """An allowance on a disk without end."""
    return Allowance(RetentionBounds(total_bytes, requester_bytes), 0, lambda: 10**15)


@pytest.fixture
def make(tmp_path, machine):
    """Opens a queue with bounds."""
    opened = []

    def begin(total_bytes=10**15, requester_bytes=10**15):
        opened.append(machine.queue(tmp_path, allowance=bounded(total_bytes, requester_bytes)))
        return opened[-1]

    yield begin
    for queue in opened:
        queue.close()


def ended(queue, job_id, *, client="line-3", size=1000, delivered=True):
    """Have a job of so many bytes end, and its result be delivered."""
    accept(queue, job_id, client=client, prompt="x" * size)
    with queue.transaction():
        queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)
        if delivered:
            for owed in queue.results.owed(100):
                queue.results.delivered(owed)


def shed(queue, act=lambda queue: queue.kept.shed()):
    """Shed until there is nothing more to; return in how many steps."""
    for step in range(1, 1000):
        with queue.transaction():
            if not act(queue):
                return step
    raise AssertionError


def texts(queue, client="line-3"):
    """Return the jobs of a client that still have their text, and those that have none."""
    with queue.transaction():
        jobs = queue._db.jobs("newest", states=None, client=client, limit=10_000)
        full = [queue.overview.named(job.job_id, client=client)[0] for job in jobs]
    return sorted(job.job_id for job in full if job.request), sorted(job.job_id for job in full if not job.request)


@pytest.mark.parametrize(
    ("free_mb", "kept_mb", "reusable_mb", "total_mb", "each_mb"),
    [
        (100_000, 50, 0, 256, 64),  # what the settings say
        (160, 0, 0, 48, 12),  # half of the room above the 64 MB that stay free, a quarter of that for each
        (112, 48, 0, 48, 12),  # no less for what they hold already
        (64, 20, 76, 48, 12),  # nor for what is free in the file
        (64, 96, 0, 48, 12),  # what is too much is shed
        (10, 40, 0, 1.048576, 0.262144),  # a disk that others have filled: a little is kept all the same
    ],
)
def test_ended_jobs_may_hold_half_of_the_room_on_the_disk(free_mb, kept_mb, reusable_mb, total_mb, each_mb):
    allowance = Allowance(RetentionBounds(256 * MB, 64 * MB), 64 * MB, lambda: free_mb * MB)
    bounds = allowance.bounds(kept_bytes=kept_mb * MB, reusable_bytes=reusable_mb * MB)
    assert (bounds.total_bytes / MB, bounds.requester_bytes / MB) == (total_mb, each_mb)


def test_beyond_its_bytes_a_requester_loses_its_oldest_texts_and_no_job(make):
    """What is sent again is answered with how it ended, and not run; others keep theirs."""
    queue = make(requester_bytes=400_000)
    for number in range(30):
        ended(queue, f"a-{number:02}", size=20_000)
        ended(queue, f"b-{number:02}", client="line-4", size=5_000)
    assert queue.kept.over
    shed(queue)
    assert not queue.kept.over
    kept, erased = texts(queue)
    assert (kept[-1], erased[0]) == ("a-29", "a-00")
    assert 14 <= len(kept) <= 19
    assert texts(queue, "line-4")[1] == []
    again = request("a-00", prompt="x" * 20_000)
    with queue.transaction():
        job = queue.repeated(again, "line-3")
        assert job.state is JobState.SUCCEEDED
        (owed,) = queue.results.owed(9)
    outcome = owed.job.outcome
    assert (outcome.text, outcome.text_truncated, outcome.finish_reason) == ("", True, "stop")
    with queue.transaction(), pytest.raises(EdgeAgentError, match="another request"):
        queue.repeated(request("a-00", prompt="y"), "line-3")


def test_when_all_hold_too_much_who_has_most_pays(make):
    queue = make(total_bytes=LEAST_BYTES)
    for number in range(40):
        ended(queue, f"m-{number:02}", client="mallory", size=50_000)
    for number in range(10):
        ended(queue, f"b-{number}", client="bob", size=20_000)
    queue.kept._allowance = bounded(LEAST_BYTES, 10**15)
    shed(queue)
    assert len(texts(queue, "bob")[0]) == 10
    assert texts(queue, "mallory")[1]


def test_texts_that_are_owed_stay_and_cost_nobody_elses(make):
    queue = make(requester_bytes=100_000)
    for number in range(20):
        ended(queue, f"o-{number}", client="owed", size=50_000, delivered=False)
    for number in range(20):
        ended(queue, f"a-{number}", size=50_000, delivered=False)
    with queue.transaction():
        for owed in queue.results.owed(100):
            if owed.job.client == "line-3":
                queue.results.delivered(owed)
        assert queue.kept.full("owed")
        assert not queue.kept.full("line-3")
        assert not queue.kept.full("nobody")
    shed(queue)
    assert len(texts(queue, "owed")[0]) == 20
    assert len(texts(queue)[0]) <= 1


def test_when_nothing_but_bare_jobs_is_left_the_oldest_of_who_has_most_are_forgotten(make):
    queue = make(requester_bytes=20_000)
    for number in range(100):
        ended(queue, f"j-{number:02}", size=10)
    shed(queue)
    kept, erased = texts(queue)
    assert (*kept, *erased) != ()
    assert find(queue, "j-00") is None
    assert find(queue, "j-99") is not None


def test_by_number_too_who_has_most_pays(make):
    """A flood of small jobs has nobody else's forgotten, whose repeats would run twice then."""
    queue = make()
    ended(queue, "bobs", client="bob")
    for number in range(120):
        ended(queue, f"m-{number:03}", client="mallory", size=1)
    steps = shed(queue, lambda queue: queue.kept.shed_jobs(10))
    assert steps > 110 // AT_ONCE
    assert find(queue, "bobs", client="bob") is not None
    assert find(queue, "m-119", client="mallory") is not None
    assert find(queue, "m-000", client="mallory") is None


def test_what_is_counted_is_what_is_there(make):
    """However jobs end, are erased and forgotten."""
    queue, chance = make(), random.Random(3)
    for number in range(150):
        accept(queue, f"j-{number}", client=chance.choice("abc"), prompt="x" * chance.randrange(9000))
        with queue.transaction():
            job = queue.claim("phi", idle=True)
            match chance.randrange(5):
                case 0:
                    queue.end(job, JobState.SUCCEEDED, Outcome(text="y" * chance.randrange(9000)))
                case 1:
                    queue.requeue(job, give_back=True)
                    queue.cancel(job.client, job.job_id)
                case 2:
                    queue._db.run("erase_oldest", client=job.client)
                    queue._db.run("forget_oldest", client=chance.choice("abc"), erased=chance.choice((True, False)))
                case 3:
                    for owed in queue.results.owed(2):
                        queue.results.delivered(owed)
                        queue.results.erase(owed.job)
            ask = queue._db.connection.execute
            counted = ask("SELECT client, jobs, bytes FROM kept ORDER BY client").fetchall()
            there = "SELECT client, count(*), sum(held_bytes) FROM jobs WHERE finished_s IS NOT NULL GROUP BY client"
            assert counted == ask(f"{there} ORDER BY client").fetchall()


def test_the_oldest_text_of_many_is_found_by_the_index(make):
    queue = make()
    for name in ("erase_oldest", "forget_oldest"):
        asked = {"client": "a", "erased": 1}
        plan = queue._db.connection.execute("EXPLAIN QUERY PLAN " + SQL[name], asked).fetchall()
        steps = " / ".join(step[3] for step in plan)
        assert "USING COVERING INDEX jobs_kept" in steps or "USING INDEX jobs_kept" in steps, steps
        assert "TEMP B-TREE" not in steps, steps


def pages_bytes(queue):
    (pages,) = queue._db.connection.execute("PRAGMA page_count").fetchone()
    return pages * 4096


def fill_and_forget(queue, jobs=120, left=5):
    for number in range(jobs):
        ended(queue, f"j-{number}", size=100_000)
    with queue.transaction():
        while queue._db.row("kept_total")[0] > left:
            queue.kept.shed_jobs(left)


def give_back(queue):
    """Do what the store does when nothing else is to be done."""
    for _ in range(100):
        assert queue.leftovers.clear(truncate=True) is None
        if not queue.leftovers.surplus:
            return
        assert queue.leftovers.give_back() is None
    raise AssertionError


def test_what_is_free_in_the_file_is_counted_and_given_back(tmp_path, make):
    queue = make()
    fill_and_forget(queue)
    assert queue.reusable_bytes > 11 * MB
    give_back(queue)
    assert (tmp_path / "queue.db").stat().st_size < FREE_BYTES + 2 * MB
    assert find(queue, "j-119").request is not None
    assert queue._db.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_file_of_an_earlier_version_gives_back_once_little_is_left_in_it(tmp_path, make):
    """It is written anew, which takes room for what is in it twice: not while it is full, nor on a full disk."""
    with sqlite3.connect(tmp_path / "queue.db", isolation_level=None) as db:
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("CREATE TABLE older (row INTEGER)")
        db.execute("DROP TABLE older")
    db.close()
    queue = make()
    assert queue._db.connection.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    fill_and_forget(queue, left=90)
    assert not queue.leftovers.surplus
    with queue.transaction():
        while queue._db.row("kept_total")[0] > 5:
            queue.kept.shed_jobs(5)
    give_back(queue)
    assert (tmp_path / "queue.db").stat().st_size < FREE_BYTES + 2 * MB
    assert queue._db.connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    assert find(queue, "j-119").request is not None
    assert claim(queue) is None
    with queue.transaction():
        queue.accept(request("next"), Envelope("line-3", 60.0), model="phi")


def test_what_ended_in_an_earlier_version_is_counted(tmp_path, machine, make):
    """A file of the second version, migrated: its rows are not written anew, only looked at."""
    queue = make()
    for number in range(3):
        ended(queue, f"j-{number}", size=5000)
    accept(queue, "waits")
    undo = "DROP TABLE kept; DROP INDEX jobs_kept; DROP INDEX jobs_alone; DROP INDEX jobs_owed_of; "
    undo += "PRAGMA user_version = 2; "
    undo += "".join(f"DROP TRIGGER kept_{name}; " for name in ("refused", "ended", "erased", "forgotten"))
    queue._db.connection.executescript(undo + "ALTER TABLE jobs DROP COLUMN held_bytes")
    queue.close()
    queue = make()
    (jobs, held_bytes) = queue._db.row("kept_total")
    assert jobs == 3
    assert 3 * 6000 < held_bytes < 3 * 7000
