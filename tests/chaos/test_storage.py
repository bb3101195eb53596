"""Disks that are full, read-only or damaged: the agent says so, loses nothing it has said yes to, and goes on."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from fakes import accept, find
from running import PATIENCE_S, AgentProcess, Listener, mosquitto_pub, requester, wait_for

from edge_agent.base.errors import EdgeAgentError
from edge_agent.jobs.job import JobState
from edge_agent.jobs.queue import Queue

pytestmark = pytest.mark.broker

DISK_BYTES = 12 * 2**20
"""Small enough to fill at once, larger than the 4 MB to which SQLite lets its journal grow."""
FLOOD_S = float(os.environ.get("FLOOD_S", "6"))
"""How long a requester sends and cancels; the long form takes 300 s."""
INBOX = "edge/v1/clients/{}/inbox/#"
COMMAND = "edge/v1/agents/edge-01/cmd/{}/{}"
TELEMETRY = "edge/v1/agents/edge-01/evt/telemetry"
KEEP_TEXT = '[privacy]\nkeep_text = "until_pruned"\n'


TOP_UP = """
import os, sys, time
if os.geteuid() == 0:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
with open(sys.argv[1], "ab", buffering=0) as ballast:
    told = False
    while True:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError:
            told = told or os.write(1, b".")
        time.sleep(0.0005)
"""
"""A program that takes all room of a disk again and again, before anybody else does."""


def as_root(*command):
    """Run a command with root's rights, if we can have them without being asked for a password."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    return subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=30)


@contextmanager
def small_disk(folder, size_bytes=DISK_BYTES):
    """A real file system of its own, in memory."""
    folder.mkdir(parents=True)
    options = f"size={size_bytes},mode=0700,uid={os.getuid()},gid={os.getgid()}"
    mounted = as_root("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if mounted.returncode:
        reason = f"no file system can be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield folder
    finally:
        as_root("umount", "--lazy", str(folder))


@pytest.fixture
def disk(tmp_path):
    """The small disk an agent of this test keeps its state on."""
    with small_disk(tmp_path / "agent" / "state") as folder:
        yield folder


def fill(disk, *, leave_bytes):
    """Take all room but so many bytes."""
    with (disk / "ballast").open("wb") as ballast:
        stat = os.statvfs(disk)
        ballast.write(bytes(max(0, stat.f_bavail * stat.f_frsize - leave_bytes)))


def free(disk):
    """Give the room back."""
    (disk / "ballast").unlink()


def shorten_journal(disk):
    """Leave nothing of the queue's journal to write into."""
    with closing(sqlite3.connect(disk / "queue.db", isolation_level=None, timeout=PATIENCE_S)) as queue:
        wait_for(lambda: queue.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "nobody at it")


@contextmanager
def full(disk):
    """Take all room, and what the agent gives back of its own as soon as it does, whatever else runs here.

    Its journal gets shorter first: what that holds already is room too.
    """
    shorten_journal(disk)
    with subprocess.Popen([sys.executable, "-c", TOP_UP, disk / "ballast"], stdout=subprocess.PIPE) as taking:
        try:
            assert taking.stdout.read(1) == b"."
            yield
        finally:
            taking.kill()
            taking.wait()
            free(disk)


@pytest.fixture
def start(broker, tmp_path, tiny_model):
    """Starts a daemon that serves the tiny model."""
    started = []

    def begin(extra):
        models = [{"name": "tiny", "path": str(tiny_model), "parallel": 2, "context_tokens": 2048}]
        agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=models, extra=extra)
        agent.config.write_text(agent.config.read_text().replace("drain_s = 10", "drain_s = 1"))
        started.append(agent.start())
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        return agent

    yield begin
    for agent in started:
        if agent.process.poll() is None:
            agent.kill()


def started_once(agent):
    """Whether the daemon runs, and is the one that was started."""
    crashes = [agent.said(event) for event in ("thread.crashed", "agent.crashed")]
    return agent.process.poll() is None and len(agent.said("agent.started")) == 1 and not any(crashes)


@pytest.mark.engine
def test_below_the_free_bytes_wanted_jobs_are_refused_and_old_results_given(start, disk, broker):
    """With less than min_free_bytes jobs are refused with a time to come again, and earlier results still given."""
    agent = start("[queue]\nmin_free_bytes = 2_000_000\n" + KEEP_TEXT)
    with Listener(broker, INBOX.format("plain")) as inbox, requester(broker) as client:
        mosquitto_pub(broker, COMMAND.format("job", "plain"), '{"job_id": "early", "prompt": "Go", "max_tokens": 9}')
        (early,) = inbox.wait("result")
        fill(disk, leave_bytes=1_000_000)
        mosquitto_pub(broker, COMMAND.format("job", "plain"), '{"job_id": "late", "prompt": "Go"}')
        (refused,) = inbox.wait("status", state="rejected")
        assert refused["error"]["code"] == "storage_full"
        assert refused["error"]["retryable"]
        assert refused["error"]["retry_after_s"] > 0
        mosquitto_pub(broker, COMMAND.format("status", "plain"), '{"job_id": "early"}')
        assert inbox.wait("result", 2)[1] == early
        free(disk)
        assert client.submit("edge-01", prompt="Go", max_tokens=3).result(60).state == "succeeded"
    assert started_once(agent)
    assert agent.stop() == 0


@pytest.mark.engine
def test_a_full_disk_loses_nothing_and_stops_nobody(start, disk, broker):
    """On a full disk jobs are refused, what ran is answered in full once there is room, and nothing is restarted."""
    agent = start("[queue]\nmin_free_bytes = 0\n" + KEEP_TEXT)
    with Listener(broker, INBOX.format("plain"), "edge/v1/agents/edge-01/evt/+") as inbox, requester(broker) as client:
        mosquitto_pub(broker, COMMAND.format("job", "plain"), '{"job_id": "early", "prompt": "Go", "max_tokens": 9}')
        (early,) = inbox.wait("result")
        running = client.submit("edge-01", prompt="Go on", max_tokens=600)
        wait_for(lambda: running.status and running.status.state == "running", "running")
        with full(disk):
            mosquitto_pub(broker, COMMAND.format("job", "plain"), '{"job_id": "late", "prompt": "Go"}')
            (refused,) = inbox.wait("status", state="rejected")
            assert (refused["error"]["code"], refused["error"]["retryable"]) == ("storage_full", True)
            assert refused["error"]["retry_after_s"] > 0
            agent.wait_said("job.computed", 2)
            agent.wait_said("store.full")
            inbox.wait("presence", health="unhealthy", reason="the disk is full")
            inbox.wait("telemetry", health="unhealthy")
            # A question cannot be answered now, and is no end of the job that was asked after.
            broker.stop()
            broker.start()
            agent.wait_said("link.up", 2)
            wait_for(
                lambda: [e for e in agent.said("message.rejected") if e["client"] == "tester"], "a question refused"
            )
            assert not running.done
        # Sooner than it may come again by itself: the client would ask, and be answered, all the same.
        mosquitto_pub(broker, COMMAND.format("status", "tester"), json.dumps({"job_id": running.job_id}))
        result = running.result(60)
        assert (result.state, result.usage.completion_tokens, result.attempt) == ("succeeded", 600, 1)
        mosquitto_pub(broker, COMMAND.format("status", "plain"), '{"job_id": "early"}')
        assert inbox.wait("result", 2)[1] == early
        assert client.submit("edge-01", prompt="Go", max_tokens=3).result(60).state == "succeeded"
    assert started_once(agent)
    assert agent.stop() == 0


@pytest.mark.engine
def test_a_stop_on_a_full_disk_is_bounded_and_the_job_runs_again(start, disk, broker):
    """SIGTERM on a full disk ends the daemon in order and bounded time; the unwritten job is run at the next start."""
    agent = start("[queue]\nmin_free_bytes = 0\n")
    with requester(broker) as client:
        running = client.submit("edge-01", prompt="Go on", max_tokens=600)
        wait_for(lambda: running.status and running.status.state == "running", "running")
        with full(disk):
            agent.wait_said("job.computed")
            agent.wait_said("store.full")
            assert agent.stop(timeout_s=45) == 0
            assert agent.said("store.abandoned")
        agent.start()
        result = running.result(60)
        assert (result.state, result.attempt) == ("succeeded", 2)
    assert agent.stop() == 0


def ended(handle):
    """How a job ended: its state, or the code it was refused with."""
    try:
        return str(handle.result(60).state)
    except EdgeAgentError as error:
        return str(error.code)


def file_bytes(agent):
    """What the queue's files take of the disk."""
    return sum(file.stat().st_size for file in agent.state_dir.glob("queue.db*"))


@pytest.mark.engine
@pytest.mark.timeout(FLOOD_S + 600)
def test_who_sends_and_cancels_fills_no_disk_and_shuts_nobody_out(start, tmp_path, broker):
    """Within its quota a requester ends hundreds of large jobs: another is never refused, and the room comes back."""
    large = {"messages": [{"role": "user", "content": "x" * 120_000}], "max_tokens": 1}
    room_bytes = 96 * 2**20 if FLOOD_S > 60 else 20 * 2**20
    with small_disk(tmp_path / "agent" / "state", 64 * 2**20 + room_bytes) as disk:
        agent = start("[requesters]\nmax_jobs = 5\nmax_bytes = 1_000_000\n")
        with requester(broker, "mallory") as mallory, requester(broker, "bob") as bob:
            end_s, sent, outcomes = time.monotonic() + FLOOD_S, 0, []
            while time.monotonic() < end_s or sent * 120_000 <= 2 * room_bytes:  # less says nothing
                flood = [mallory.submit("edge-01", job_id=f"m-{sent + each}", **large) for each in range(4)]
                sent += len(flood)
                for handle in flood:
                    handle.cancel()
                if sent % 100 == 0:
                    assert bob.submit("edge-01", prompt="Go", max_tokens=2).result(60).state == "succeeded"
                outcomes += map(ended, flood)
            assert bob.submit("edge-01", job_id="last", prompt="Go", max_tokens=2).result(60).state == "succeeded"
            assert set(outcomes) <= {"canceled", "failed", "quota_exceeded"}, Counter(outcomes)
            # The jobs are remembered when their texts are not any more: what is sent again is answered, and not run.
            early = next(number for number in range(sent - 300, sent) if outcomes[number] == "canceled")
            assert ended(mallory.submit("edge-01", job_id=f"m-{early}", **large)) == "canceled"
            stat = os.statvfs(disk)
            wait_for(lambda: file_bytes(agent) < stat.f_blocks * stat.f_frsize // 4, "the room to come back")
        assert started_once(agent)
        assert agent.stop() == 0


@contextmanager
def somebody_elses_lock(agent):
    """The write lock of the agent's queue in the hand of another program, as of a backup or of VACUUM."""
    with closing(sqlite3.connect(agent.state_dir / "queue.db", isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


@pytest.mark.engine
def test_another_programs_lock_costs_time_and_nothing_else(start, broker):
    """While jobs run, at the stop and at the start: it is said, no attempt is lost, and nobody is refused."""
    agent = start("")

    def computed(jobs):
        agent.wait_said("job.computed", jobs)
        wait_for(lambda: len(agent.said("store.locked")) > len(agent.said("store.writable")), "the lock to be said")

    def is_answered(handle):
        result = handle.result(PATIENCE_S)
        return (result.state, result.attempt, result.usage.completion_tokens) == ("succeeded", 1, 200)

    with requester(broker) as client, Listener(broker, "edge/v1/agents/edge-01/evt/+") as evt:

        def running(count):
            handle = client.submit("edge-01", prompt="Go on", max_tokens=200)
            agent.wait_said("job.started", count)
            return handle

        first = running(1)
        with somebody_elses_lock(agent):
            second = client.submit("edge-01", prompt="Go on", max_tokens=200)
            computed(1)
            evt.wait("presence", health="unhealthy", reason="another program holds the lock of the queue")
        assert is_answered(first)
        assert is_answered(second)
        third = running(3)
        with somebody_elses_lock(agent):
            computed(3)
            agent.process.send_signal(signal.SIGTERM)
            agent.wait_said("agent.stopping")
            assert agent.process.poll() is None
        assert agent.process.wait(PATIENCE_S) == 0
        assert not agent.said("store.abandoned")
        assert is_answered(third)
        with somebody_elses_lock(agent):
            agent.start()
            agent.wait_said("store.locked", 3)
            last = client.submit("edge-01", prompt="Go on", max_tokens=200)
        assert is_answered(last)
    assert not agent.said("thread.crashed")


@pytest.mark.engine
def test_what_was_called_queued_is_on_disk(start, broker):
    """A job killed with its agent right behind `queued` stands in the database, and is answered by the next start."""
    agent = start("")
    with Listener(broker, INBOX.format("plain")) as inbox:
        job = '{"job_id": "j-1", "prompt": "Go", "max_tokens": 600}'
        mosquitto_pub(broker, COMMAND.format("job", "plain"), job)
        inbox.wait("status", state="queued")
        agent.kill()
        with Queue(agent.state_dir / "queue.db") as queue:
            assert find(queue, "j-1", "plain").state in (JobState.QUEUED, JobState.RUNNING)
        agent.start()
        inbox.wait("result", job_id="j-1", state="succeeded")


@pytest.fixture
def hindered(broker, tmp_path):
    """A daemon, not started, that serves nothing and whom file permissions bind even when the tests run as root."""
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[])
    agent.state_dir.mkdir(mode=0o700)
    if os.geteuid() == 0:
        agent.launcher = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
    yield agent
    agent.state_dir.chmod(0o700)
    if agent.process and agent.process.poll() is None:
        agent.kill()


def test_a_folder_that_cannot_be_written_is_waited_for_and_used_once_mended(hindered, broker):
    """A daemon that may not write beside its queue says what to mend, stays, and goes on when it is mended."""
    with Queue(hindered.state_dir / "queue.db") as queue:
        accept(queue, "j-1", client="plain")
    (hindered.state_dir / "lock").touch(mode=0o600)
    hindered.state_dir.chmod(0o500)
    hindered.start()
    (said, *_) = hindered.wait_said("queue.unwritable")
    assert "mend the folder's rights" in said["next"]
    assert hindered.process.poll() is None
    hindered.state_dir.chmod(0o700)
    hindered.wait_said("link.up")
    with Listener(broker, INBOX.format("plain"), TELEMETRY) as inbox:
        inbox.wait("telemetry")  # by then its subscriptions stand
        mosquitto_pub(broker, COMMAND.format("status", "plain"), '{"job_id": "j-1"}')
        (answer, *_) = inbox.wait("status", job_id="j-1")
        assert answer["state"] != "rejected"  # the row is there; nobody serves its model
    assert hindered.stop() == 0


def test_a_folder_that_is_not_ours_yet_is_waited_for(hindered):
    """Where not even the lock can be made, as before something is mounted there, it names the key and goes on later."""
    hindered.state_dir.chmod(0o500)
    hindered.start()
    (said, *_) = hindered.wait_said("start.waits")
    assert "agent.state_dir" in said["reason"]
    assert "cannot be written: Permission denied" in said["reason"]
    hindered.state_dir.chmod(0o700)
    hindered.wait_said("agent.started")
    assert hindered.stop() == 0


def test_a_read_only_disk_is_waited_for(hindered):
    """A disk that an error made read-only is mounted anew by somebody, who need not know of the daemon."""
    hindered.state_dir.rmdir()
    with small_disk(hindered.state_dir) as folder:
        assert as_root("mount", "-o", "remount,ro", str(folder)).returncode == 0
        hindered.start()
        (said, *_) = hindered.wait_said("start.waits")
        assert "cannot be written: Read-only file system" in said["reason"]
        assert as_root("mount", "-o", "remount,rw", str(folder)).returncode == 0
        hindered.wait_said("agent.started")
        assert hindered.stop() == 0


def scribble(file, offset, count):
    with file.open("r+b") as database:
        database.seek(offset)
        database.write(b"\xa5" * count)


DAMAGES = {
    "pages in the middle": lambda file: scribble(file, 8192, file.stat().st_size - 16384),
    "one page": lambda file: scribble(file, 8192, 4096),
    "the header": lambda file: scribble(file, 0, 512),
    "the end cut off": lambda file: os.truncate(file, file.stat().st_size // 2),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_queue_is_set_aside_and_a_fresh_one_begun(broker, tmp_path, damage):
    """A damaged database is kept under another name, the daemon says so once, and works with a fresh one."""
    agent = AgentProcess(folder=tmp_path / "agent", broker=broker, models=[])
    agent.state_dir.mkdir()
    file = agent.state_dir / "queue.db"
    with Queue(file) as queue:
        for number in range(200):
            accept(queue, f"j-{number}", client="plain", prompt="What is on the belt? " * 10)
    damage(file)
    damaged = file.read_bytes()
    with Listener(broker, INBOX.format("plain"), TELEMETRY) as inbox, agent:
        inbox.wait("telemetry")  # by then its subscriptions stand
        mosquitto_pub(broker, COMMAND.format("status", "plain"), '{"job_id": "j-1"}')
        (answer,) = inbox.wait("status")
        assert answer["error"]["code"] == "unknown_job"
        (said,) = agent.said("queue.damaged")
        assert said["next"] == "a fresh queue is begun"
        assert Path(said["kept_as"]).read_bytes() == damaged
        assert agent.stop() == 0
    with Queue(file) as queue:
        assert find(queue, "j-1", "plain") is None
