"""The daemon goes on, and ends when it is told to, whatever becomes of what it writes to standard error."""

import os
import pty
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from running import QUIET, AgentProcess, faulty, requester

pytestmark = pytest.mark.broker


def _fill(descriptor):
    os.set_blocking(descriptor, False)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, b"x" * 4096)
    os.set_blocking(descriptor, True)


@contextmanager
def stalled():
    """A pipe that is full, and that nobody reads."""
    reading, writing = os.pipe()
    _fill(writing)
    yield writing
    os.close(reading)
    os.close(writing)


@contextmanager
def gone():
    """A pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@contextmanager
def full():
    """A full disk."""
    with Path("/dev/full").open("wb") as file:
        yield file.fileno()


@contextmanager
def terminal():
    """A terminal that nobody looks at any more."""
    ours, theirs = pty.openpty()
    _fill(theirs)
    yield theirs
    os.close(ours)
    os.close(theirs)


@contextmanager
def closed():
    """No standard error at all: the first file that is opened would take its place."""
    yield None


LONG = "CHAOS_KILLS" in os.environ
WAYS = [stalled, gone, full, terminal, closed] if LONG else [stalled, closed]


@contextmanager
def started(agent, way, **environ):
    with way() as descriptor:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(agent.config)]
        if descriptor is None:
            command = ["bash", "-c", 'exec "$@" 2>&-', "-", *command]
        agent.process = subprocess.Popen(command, stderr=descriptor, env=os.environ | QUIET | environ)
        try:
            yield agent.process
        finally:
            if agent.process.poll() is None:
                agent.kill()


@pytest.mark.parametrize("way", WAYS, ids=lambda each: each.__name__)
def test_jobs_are_answered_and_sigterm_is_heard(broker, tiny_model, tmp_path, way):
    """One line of the log that could not be written made it deaf for ever."""
    agent = AgentProcess(folder=tmp_path / "a", broker=broker, models=[{"name": "t", "path": str(tiny_model)}])
    with started(agent, way) as process, requester(broker) as client:
        assert client.submit("edge-01", prompt="Hello", max_tokens=2).result(60).state == "succeeded"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert (agent.state_dir / "queue.db").read_bytes().startswith(b"SQLite format 3\0")


@pytest.mark.parametrize("when", ["begin", "1"] if LONG else ["begin"])
def test_it_ends_by_its_fault_though_it_cannot_tell_of_it(broker, tiny_model, tmp_path, when):
    agent = AgentProcess(folder=tmp_path / "a", broker=broker, models=[{"name": "t", "path": str(tiny_model)}])
    with started(agent, stalled, **faulty(FAULTS_CRASH=when)) as process:
        assert process.wait(60) == 1


def test_settings_that_cannot_be_used_are_told_by_the_status_alone(tmp_path):
    config = tmp_path / "edge-agent.toml"
    config.write_text("nonsense")
    with gone() as descriptor:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(config)]
        assert subprocess.run(command, stderr=descriptor, check=False).returncode == 2
