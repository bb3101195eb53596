"""The store's thread: one transaction for all that waits, and nothing said before it is on disk."""

import contextlib
import errno
import os
import resource
import sqlite3
import threading

import pytest
from fakes import PATIENCE_S, FullDisk, Time, accept, claim, find, flush, request
from running import limited, wait_for
from structlog.testing import capture_logs

import edge_agent.jobs.store as store_module
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.jobs.database import DiskFullError
from edge_agent.jobs.job import JobState
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.retention import Allowance, RetentionBounds
from edge_agent.jobs.store import Operation, Store


@pytest.fixture
def machine():
    return Time()


@pytest.fixture
def queue(tmp_path, machine):
    return machine.queue(tmp_path)


@pytest.fixture
def told():
    return []


@pytest.fixture
def store(queue, told):
    """A store that is not started yet; stopped at the end if it was."""
    made = Store(queue, keep_finished_s=3600, keep_finished_jobs=100, retry_s=0.01)
    made.on_changed.connect(told.append)
    yield made
    if made._thread.is_alive():
        made.stop()
    queue.close()


@pytest.fixture
def lock(tmp_path, queue):
    """Another program's connection to the queue, which may hold its lock."""
    queue._db.connection.execute("PRAGMA busy_timeout = 10")
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        yield other


@pytest.fixture
def disk(queue, monkeypatch):
    return FullDisk(queue, monkeypatch)


def store_job(name):
    return lambda queue: queue.accept(request(name), Envelope("line-3", 600.0), model="phi")


def test_what_waits_shares_one_commit_and_is_told_in_the_order_of_arrival(store, told):
    """Jobs that came while the disk was busy cost one sync; their outcomes come after it, in order."""
    done = []
    for name in ("a", "b", "c"):
        store.put(Operation(store_job(name), lambda job: done.append((job.job_id, len(told)))))
    store.start()
    flush(store)
    assert done == [("a", 0), ("b", 0), ("c", 0)]
    assert [[job.job_id for job in changes] for changes in told] == [["a", "b", "c"]]


def test_an_outcome_is_durable_when_it_is_told(store, tmp_path, machine):
    """Another connection sees the job at that moment."""
    seen = []

    def then(_job):
        with machine.queue(tmp_path) as other:
            seen.append(find(other).state)

    store.start()
    store.put(Operation(store_job("job-1"), then))
    flush(store)
    assert seen == [JobState.QUEUED]


def test_what_lies_beside_the_queue_is_on_the_disk_before_anything_is_told(queue):
    """One wait for all that came together. A disk that does not take it refuses what can be; the rest waits for it."""
    seen, refused, broken = [], [], []

    def sync():
        seen.append("sync")
        if broken:
            raise OSError(errno.EIO, "I/O error")

    store = Store(queue, keep_finished_s=3600, keep_finished_jobs=100, sync=sync, retry_s=0.01)
    store.on_changed.connect(seen.append)
    for name in ("a", "b"):
        store.put(Operation(store_job(name), lambda job: seen.append(job.job_id), refused.append))
    store.start()
    flush(store)
    assert seen[:3] == ["sync", "a", "b"]
    broken.append("disk")
    store.put(Operation(store_job("may"), seen.append, refused.append))
    wait_for(lambda: refused, "a refusal")
    done = store.asked(store_job("must"))
    broken.clear()
    assert done.result(PATIENCE_S).job_id == "must"
    assert store.ask(lambda queue: queue.recall("line-3", "may"), timeout_s=PATIENCE_S) is None
    store.stop()


def test_an_error_is_the_outcome_of_its_operation_alone(store):
    """What was refused is told so; its neighbours in the transaction are committed."""
    outcomes = []

    def refuse(_queue):
        raise EdgeAgentError(Code.QUEUE_FULL, "the queue is full")

    for act in (store_job("a"), refuse, store_job("b")):
        store.put(Operation(act, outcomes.append))
    store.start()
    flush(store)
    assert [getattr(each, "code", None) or each.job_id for each in outcomes] == ["a", Code.QUEUE_FULL, "b"]
    with pytest.raises(EdgeAgentError):
        store.ask(refuse, timeout_s=PATIENCE_S)


def test_the_first_transaction_recovers_what_a_dead_agent_left_running(queue, store):
    accept(queue)
    claim(queue)
    store.start()
    job = store.ask(lambda queue: queue.recall("line-3", "job-1"), timeout_s=PATIENCE_S)
    assert (job.state, job.alone) == (JobState.QUEUED, True)


def test_a_full_disk_refuses_what_can_be_refused_and_keeps_the_rest(store, disk):
    """New jobs are told so at once; what must be written is tried until there is room. Nothing is done twice."""
    refused, done = [], []
    store.start()
    flush(store)
    disk.full = True
    store.put(Operation(store_job("new"), done.append, lambda error: refused.append(("new", str(error)))))
    store.put(Operation(store_job("must"), done.append))
    disk.wait_refusals(3)
    assert refused == [("new", "database or disk is full")]
    assert store.trouble.trouble == "the disk is full"
    assert done == []
    disk.full = False
    flush(store)
    assert [job.job_id for job in done] == ["must"]
    assert store.trouble is None
    assert store.ask(lambda queue: queue.recall("line-3", "new"), timeout_s=PATIENCE_S) is None


def test_order_holds_while_the_disk_is_full(store, disk):
    """What waits for room keeps its place before what comes later."""
    done = []
    store.start()
    flush(store)
    disk.full = True
    store.do(lambda _queue: "first", done.append)
    disk.wait_refusals(1)
    store.do(lambda _queue: "second", done.append)
    disk.wait_refusals(2)
    disk.full = False
    flush(store)
    assert done == ["first", "second"]


def test_waiting_jobs_expire_at_their_time_without_anybody_asking(store, told):
    """The thread wakes for the next expiry; here on a clock that already shows it."""
    expired = threading.Event()
    store.on_changed.connect(lambda changes: expired.set() if changes[-1].state is JobState.EXPIRED else None)
    store.start()
    store.do(lambda queue: queue.accept(request(), Envelope("line-3", 0.0), model="phi"))
    assert expired.wait(PATIENCE_S)
    assert [job.state for jobs in told for job in jobs] == [JobState.QUEUED, JobState.EXPIRED]


def test_a_clock_that_is_not_believed_is_said_once_and_when_it_is_right_again(store, machine, monkeypatch):
    monkeypatch.setattr(store_module, "HOUSEKEEPING_S", 0.01)
    right_s, machine.wall_s = machine.wall_s, 60.0
    with capture_logs() as said:
        store.start()
        for _ in range(3):
            flush(store)
            machine.pass_s(1)
        assert [each["event"] for each in said] == ["clock.doubted"]
        assert said[0]["reason"].startswith("the clock shows 1970-01-01")
        machine.wall_s = right_s
        wait_for(lambda: (flush(store), len(said) == 2)[1], "the clock to be believed")
    assert said[1]["event"] == "clock.believed"


def test_stop_does_everything_that_waits_and_remembers_the_clock(store, tmp_path, machine):
    """Also what outcomes still ask for. Then the file is closed, and the next start goes on where this one was."""
    store.start()
    store.do(store_job("a"), lambda _job: store.do(store_job("b")))
    machine.pass_s(100)
    now_s = store.now_s()
    store.stop()
    machine.reboot(away_s=0)
    with machine.queue(tmp_path) as queue:
        assert find(queue, "b").state is JobState.QUEUED
        assert queue.clock.now_s() == pytest.approx(now_s)


def test_stop_on_a_full_disk_ends_all_the_same(store, disk):
    store.start()
    flush(store)
    disk.full = True
    store.do(store_job("a"))
    store.stop()
    assert not store._thread.is_alive()


def test_a_question_nobody_can_answer_ends_in_time(store, disk):
    store.start()
    flush(store)
    disk.full = True
    with pytest.raises(TimeoutError):
        store.ask(lambda queue: queue.backlog, timeout_s=0.05)


# Another program's lock


def test_a_lock_is_waited_for_by_everybody_and_said(store, lock, told):
    """What could be refused waits too, for it is let go soon; then all is done once, in the order of arrival."""
    refused, done = [], []
    store.start()
    flush(store)
    lock.execute("BEGIN IMMEDIATE")
    for name in ("a", "b"):
        store.put(Operation(store_job(name), lambda job: done.append(job.job_id), refused.append))
    wait_for(lambda: store.trouble, "the lock to be noticed")
    assert store.trouble.trouble == "another program holds the lock of the queue"
    assert (refused, done, told) == ([], [], [])
    lock.execute("COMMIT")
    flush(store)
    assert (refused, done, store.trouble) == ([], ["a", "b"], None)


def test_a_lock_that_stays_refuses_what_can_be_refused(queue, lock):
    store = Store(queue, keep_finished_s=60, keep_finished_jobs=9, retry_s=0.01, lock_s=0.0)
    refused, done = [], []
    store.start()
    flush(store)
    lock.execute("BEGIN IMMEDIATE")
    store.put(Operation(store_job("may"), done.append, refused.append))
    store.put(Operation(store_job("must"), done.append))
    wait_for(lambda: refused, "a refusal")
    assert "lock" in refused[0].trouble
    lock.execute("COMMIT")
    store.stop()
    assert [job.job_id for job in done] == ["must"]


def test_a_stop_waits_for_a_lock_and_loses_nothing(store, lock, tmp_path, machine):
    store.start()
    flush(store)
    lock.execute("BEGIN IMMEDIATE")
    store.do(store_job("a"))
    wait_for(lambda: store.trouble, "the lock to be noticed")
    stopping = threading.Thread(target=store.stop)
    stopping.start()
    wait_for(store._stop.is_set, "the stop")
    lock.execute("COMMIT")
    stopping.join(PATIENCE_S)
    with machine.queue(tmp_path) as queue:
        assert find(queue, "a").state is JobState.QUEUED


def test_a_lock_that_nobody_lets_go_ends_no_stop(store, lock, monkeypatch):
    monkeypatch.setattr(store_module, "LOCK_STOP_S", 0.05)
    store.start()
    flush(store)
    lock.execute("BEGIN IMMEDIATE")
    store.do(store_job("a"))
    store.stop()
    assert not store._thread.is_alive()


def test_a_disk_that_takes_results_and_no_pruning_takes_the_results(store, queue, monkeypatch):
    """What is to be forgotten needs room before it gives some: it keeps no result back, and is tried with less."""
    tried = []

    def prune(*, rows, **_bounds):
        tried.append(rows)
        if rows > 1:
            raise DiskFullError("database or disk is full")
        return False

    monkeypatch.setattr(queue, "prune", prune)
    store.start()
    flush(store)
    assert store.ask(store_job("a"), timeout_s=PATIENCE_S).state is JobState.QUEUED
    assert store.trouble is None
    queue.clock._boottime = lambda: 1e6  # a while later
    wait_for(lambda: 1 in tried or store.do(lambda _queue: None), "a smaller step")


def test_a_log_that_cannot_grow_is_written_to_from_its_beginning(queue, machine, tmp_path):
    """A full disk holds room in it that is ours."""
    store = Store(queue, keep_finished_s=3600, keep_finished_jobs=100, retry_s=0.01)
    store._cleaning._now_s = machine.now_s
    store.start()
    for number in range(20):
        store.ask(store_job(f"j-{number}"), timeout_s=PATIENCE_S)
    log = tmp_path / "queue.db-wal"
    done = threading.Event()
    with limited(resource.RLIMIT_FSIZE, log.stat().st_size):
        store.do(store_job("more"), lambda _job: done.set())
        wait_for(lambda: store.trouble, "a log that cannot grow")
        assert not done.is_set()
        machine.pass_s(5)
        assert done.wait(PATIENCE_S)
        assert store.trouble is None
        store.stop()


@pytest.mark.parametrize("kind", ["descriptors", "folder"])
def test_what_the_disk_does_not_tell_ends_no_thread(tmp_path, machine, kind):
    """No descriptor is left to look at the log with; the folder's disk says nothing of its room."""
    looks = []

    def free_bytes():
        looks.append(kind)
        return os.statvfs(tmp_path if kind == "descriptors" else tmp_path / "gone").f_bavail

    queue = machine.queue(tmp_path, allowance=Allowance(RetentionBounds(1, 1), 0, free_bytes))
    store = Store(queue, keep_finished_s=3600, keep_finished_jobs=100, retry_s=0.01)
    most = 3 if kind == "descriptors" else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    accept(queue)
    store.start()
    with limited(resource.RLIMIT_NOFILE, most):
        for number in range(3):
            flush(store)
            store.ask(store_job(f"j-{number}"), timeout_s=PATIENCE_S)
        assert looks
        assert store.trouble is None
        store.stop()
