"""Wall clocks that jump by a day: nothing expires early, nothing lives longer, nobody is overtaken.

The unit tests move a machine's clocks by hand; the daemon's own wall clock is moved by a patch that Python loads at
its start and that reads the jump from a file.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

import pytest
from fakes import ANSWER, Time, accept, claim, find, request
from running import AgentProcess, Listener, mosquitto_pub, wait_for

import edge_agent
from edge_agent.jobs.database import SQL
from edge_agent.jobs.job import JobState
from edge_agent.jobs.queue import Queue

DAY_S = 86_400.0
JUMPS_S = (DAY_S, -DAY_S)
INBOX = "edge/v1/clients/{}/inbox/#"
JOB = "edge/v1/agents/edge-01/cmd/job/{}"

PATCH = """
import time
from pathlib import Path

_true = {name: getattr(time, name) for name in ("time", "time_ns", "clock_gettime", "gmtime", "localtime")}


def _jump_s():
    return float(Path(__file__).with_name("jump_s").read_text() or 0)


time.time = lambda: _true["time"]() + _jump_s()
time.time_ns = lambda: _true["time_ns"]() + int(_jump_s() * 1e9)
time.gmtime = lambda seconds=None: _true["gmtime"](time.time() if seconds is None else seconds)
time.localtime = lambda seconds=None: _true["localtime"](time.time() if seconds is None else seconds)
time.clock_gettime = lambda clock: time.time() if clock == time.CLOCK_REALTIME else _true["clock_gettime"](clock)
"""


@contextlib.contextmanager
def opened(time, folder):
    """The queue as the agent opens it."""
    with time.queue(folder) as queue:
        with queue.transaction():
            queue.recover()
        yield queue


def expire(queue):
    with queue.transaction():
        return queue.expire()


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_jump_while_the_agent_runs_moves_no_end_of_life(tmp_path, jump_s):
    """A job of 10 s lives 10 s, however the wall clock jumps meanwhile."""
    time = Time()
    with opened(time, tmp_path) as queue:
        accept(queue, ttl_s=10.0)
        time.wall_s += jump_s
        time.pass_s(9.5)
        expire(queue)
        assert find(queue).state is JobState.QUEUED
        time.pass_s(1.0)
        expire(queue)
        assert find(queue).state is JobState.EXPIRED


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_jump_over_a_restart_moves_no_end_of_life(tmp_path, jump_s):
    """A job of 10 s that waits over a restart of the agent still lives 10 s, wherever the wall clock is by then."""
    time = Time()
    with opened(time, tmp_path) as queue:
        accept(queue, ttl_s=10.0)
    time.wall_s += jump_s
    time.pass_s(5.0)
    with opened(time, tmp_path) as queue:
        expire(queue)
        assert find(queue).state is JobState.QUEUED
        time.pass_s(5.5)
        expire(queue)
        assert find(queue).state is JobState.EXPIRED


@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_jump_changes_no_order(tmp_path, jump_s):
    """Jobs of one priority are claimed in the order in which they came, also when the clock jumped between them."""
    time = Time()
    with opened(time, tmp_path) as queue:
        accept(queue, "first")
        time.wall_s += jump_s
        time.pass_s(1.0)
        accept(queue, "second")
        time.wall_s -= 2 * jump_s
        time.pass_s(1.0)
        accept(queue, "urgent", priority=9)
        assert [claim(queue).job_id for _ in range(3)] == ["urgent", "first", "second"]


def test_a_reboot_with_a_wall_clock_set_back_counts_as_no_time(tmp_path):
    """After a reboot with the clock a day back a job of 10 s neither expires at once nor lives a day."""
    time = Time()
    with opened(time, tmp_path) as queue:
        accept(queue, ttl_s=10.0)
    time.reboot(away_s=-DAY_S)
    with opened(time, tmp_path) as queue:
        time.pass_s(9.0)
        expire(queue)
        assert find(queue).state is JobState.QUEUED
        time.pass_s(2.0)
        expire(queue)
        assert find(queue).state is JobState.EXPIRED


def test_time_switched_off_counts(tmp_path):
    """After a reboot with the clock five minutes ahead a job of 10 s is over and one of 10 minutes is not."""
    time = Time()
    with opened(time, tmp_path) as queue:
        accept(queue, ttl_s=10.0)
        accept(queue, "patient", ttl_s=600.0)
    time.reboot(away_s=300.0)
    with opened(time, tmp_path) as queue:
        expire(queue)
        assert find(queue).state is JobState.EXPIRED
        assert find(queue, "patient").state is JobState.QUEUED


class Jumping:
    """A daemon whose wall clock can be moved while it runs."""

    def __init__(self, folder, **settings):
        patch = folder / "patch"
        patch.mkdir(parents=True)
        (patch / "sitecustomize.py").write_text(PATCH)
        self._file = patch / "jump_s"
        self.jump(0)
        root = Path(edge_agent.__file__).parents[1]
        self.agent = AgentProcess(folder=folder, environ={"PYTHONPATH": f"{patch}{os.pathsep}{root}"}, **settings)

    def jump(self, seconds):
        temporary = self._file.with_suffix(".new")
        temporary.write_text(str(seconds))
        temporary.replace(self._file)


@contextlib.contextmanager
def reading(agent):
    """The queue of a daemon that has ended."""
    with Queue(agent.state_dir / "queue.db") as queue:
        yield queue


def another_boot(agent):
    """Make the queue believe that its clock was last read on another boot of this machine."""
    with reading(agent) as queue, queue.transaction():
        anchor = dataclasses.replace(queue.clock.anchor(), boot_id="another")
        queue._db.connection.execute(SQL["write_clock"], dataclasses.asdict(anchor))


@pytest.mark.broker
@pytest.mark.engine
@pytest.mark.parametrize("jump_s", JUMPS_S)
def test_a_daemon_whose_clock_jumps_neither_expires_nor_keeps_its_jobs(broker, tmp_path, tiny_model, jump_s):
    """With the wall clock jumping under a daemon waiting jobs stay, short-lived ones end in time, order is kept."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 1, "context_tokens": 2048}]
    jumping = Jumping(tmp_path / "agent", broker=broker, models=models)
    with jumping.agent as agent, Listener(broker, INBOX.format("plain")) as inbox:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")

        def submit(job_id, **fields):
            extra = "".join(f', "{name}": {value}' for name, value in fields.items())
            mosquitto_pub(broker, JOB.format("plain"), f'{{"job_id": "{job_id}", "prompt": "Go on"{extra}}}')

        submit("busy", max_tokens=1500, ttl_s=60)
        inbox.wait("status", job_id="busy", state="running")
        submit("first", max_tokens=3, ttl_s=60)
        inbox.wait("status", job_id="first", state="queued")
        jumping.jump(jump_s)
        submit("second", max_tokens=3, ttl_s=60)
        for job_id in ("busy", "first", "second"):
            inbox.wait("result", job_id=job_id, state="succeeded")
        assert [result["job_id"] for result in inbox.of("result")] == ["busy", "first", "second"]
        for result in inbox.of("result"):
            assert 0 <= result["timings"]["total_ms"] < 60_000
        engine = agent.engines()[0]
        engine.suspend()  # nothing is answered from here on: what is not running waits
        submit("stuck", max_tokens=3, ttl_s=30)
        inbox.wait("status", job_id="stuck", state="running")
        submit("short", max_tokens=3, ttl_s=2)
        inbox.wait("status", job_id="short", state="queued")
        jumping.jump(0)
        (expired,) = inbox.wait("result", job_id="short", state="expired")
        assert 1_900 < expired["timings"]["total_ms"] < 60_000
        engine.resume()
        inbox.wait("result", job_id="stuck", state="succeeded")
        assert agent.stop() == 0


@pytest.mark.broker
@pytest.mark.engine
def test_a_daemon_rebooted_with_its_clock_a_day_back_does_what_waited(broker, tmp_path, tiny_model):
    """After a reboot with the clock a day back jobs that waited are done, and in their order."""
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 1, "context_tokens": 2048}]
    jumping = Jumping(tmp_path / "agent", broker=broker, models=models)
    with jumping.agent as agent, Listener(broker, INBOX.format("plain")) as inbox:
        agent.wait_said("engine.ready")
        agent.wait_said("link.up")
        for number in range(3):
            body = f'{{"job_id": "j-{number}", "prompt": "Go on", "max_tokens": 800, "ttl_s": 60}}'
            mosquitto_pub(broker, JOB.format("plain"), body)
        inbox.wait("status", job_id="j-2", state="queued")
        agent.kill()
        another_boot(agent)
        jumping.jump(-DAY_S)
        agent.start()

        def ended():
            """A result whose acknowledgement the kill cut off comes again, and is the same."""
            return list(dict.fromkeys((each["job_id"], each["state"]) for each in inbox.of("result")))

        wait_for(lambda: len(ended()) == 3, "three results")
        assert ended() == [(f"j-{n}", "succeeded") for n in range(3)]
        assert agent.stop() == 0


@pytest.mark.parametrize("shows_s", [60.0, 4_070_908_800.0], ids=["1970", "2099"])
@pytest.mark.parametrize("first", [True, False], ids=["then-right", "right-then"])
def test_a_wrong_clock_on_one_boot_expires_nothing_and_runs_nothing_twice(tmp_path, shows_s, first):
    """Waiting jobs wait on, ended ones are remembered and their results still owed, a cancel before its job is kept."""
    time = Time()
    right_s = time.wall_s
    time.wall_s = shows_s if first else right_s
    with opened(time, tmp_path) as queue:
        accept(queue, "ended")
        ended = claim(queue)
        accept(queue, "waits", ttl_s=10.0)
        with queue.transaction():
            queue.end(ended, JobState.SUCCEEDED, ANSWER)
            queue.cancel("line-3", "comes-later")
            queue.remember_clock()
    time.reboot(away_s=1.0)
    time.wall_s = right_s if first else shows_s
    with opened(time, tmp_path) as queue:
        expire(queue)
        with queue.transaction():
            queue.prune(keep_s=86_400.0, keep_jobs=100)
            assert [owed.job.job_id for owed in queue.results.owed(9)] == ["ended"]
            assert queue.repeated(request("ended"), "line-3").state is JobState.SUCCEEDED
        assert find(queue, "waits").state is JobState.QUEUED
        assert accept(queue, "comes-later").state is JobState.CANCELED
        time.pass_s(11.0)
        expire(queue)
        assert find(queue, "waits").state is JobState.EXPIRED
