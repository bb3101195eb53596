"""The service manager hears that the agent lives while every thread does, and no more once one stands still."""

import socket

import pytest
from running import AgentProcess, faulty, requester, wait_for

from edge_agent.control.caller import ask_agent
from edge_agent.control.messages import AskState
from edge_agent.control.server import beside
from edge_agent.mqtt.private_broker import random_port

pytestmark = pytest.mark.broker

WATCH = '[[watch]]\nname = "w"\ntopic = "some/thing"\nprompt = "What?"\n'
SILENT_S = 2.0
"""Twenty times as long as it takes between two signs of life."""


class Manager:
    """The socket of a service manager, and the environment of what it has started."""

    def __init__(self, folder):
        self.freeze = folder / "freeze"
        self.freeze.mkdir()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(60)
        self.environ = faulty(
            NOTIFY_SOCKET=str(folder / "notify"),
            WATCHDOG_USEC="3000000",
            FAULTS_FREEZE=str(self.freeze),
            FAULTS_BACKEND="metronome:load",
            METRONOME_S="0.2",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._socket.close()

    def hears(self, wanted):
        """Return the first thing it hears that is as wanted."""
        while not wanted(said := self._socket.recv(65_536).decode()):
            pass
        return said

    def is_silent(self):
        """Return whether nothing comes any more."""
        self._socket.settimeout(SILENT_S)
        try:
            self.hears(lambda _said: False)
        except TimeoutError:
            return True

    def hears_life(self, times):
        for _ in range(times):
            self.hears(lambda said: said == "WATCHDOG=1")


def stuck(agent):
    """Return the threads that an agent says do not come back, which make it unhealthy."""
    state = ask_agent(agent.state_dir, AskState()).state
    found = {reason.removeprefix("its thread ").split()[0] for reason in state.reasons if "its thread" in reason}
    assert (state.health == "unhealthy") == bool(found)
    return found


@pytest.fixture
def manager(tmp_path):
    with Manager(tmp_path) as listening:
        yield listening


def agent_under(manager, folder, broker, tiny_model, *models, extra=""):
    served = [{"name": "t", "path": str(tiny_model)}, *models]
    return AgentProcess(folder=folder / "agent", broker=broker, models=served, environ=manager.environ, extra=extra)


def test_a_thread_that_stands_still_ends_the_signs_of_life(manager, broker, tiny_model, tmp_path):
    """One after the other, for real; until then idle waits and an engine's long work are no reason."""
    extra = f"{WATCH}[prometheus]\nport = {random_port()}\n"
    agent = agent_under(manager, tmp_path, broker, tiny_model, {"name": "phi-3.5-mini"}, extra=extra)
    with agent, requester(broker) as client:
        manager.hears(lambda said: said == "READY=1")
        job = client.submit("edge-01", prompt="Hello", max_tokens=1, model="t")  # its engine loads, is tried, and works
        assert job.result(60).state == "succeeded"
        manager.hears_life(40)
        assert not agent.said("agent.stuck")
        still = set()

        def freeze(*threads, by):
            """Stop threads that `by` gives something to do; wait until that is told of them and no other."""
            for thread in threads:
                (manager.freeze / thread).touch()
            by()
            still.update(threads)
            manager.hears(lambda said: set(said.removeprefix("STATUS=stuck: ").split(", ")) == still)

        def knock():
            with socket.socket(socket.AF_UNIX) as sock, beside(agent.state_dir) as address:
                sock.connect(address)

        freeze("dispatcher", "outbox", by=lambda: client.submit("edge-01", prompt="Hello", model="t"))
        freeze("store", by=lambda: None)  # the reporter does
        assert stuck(agent) == still
        freeze("control", "http", "images", "models", "mqtt-watch", "reporter", by=knock)
        assert manager.is_silent()


@pytest.mark.parametrize("thread", ["mqtt", "main", "engine-in"])
def test_so_do_the_network_the_main_thread_and_one_that_hears_an_engine(manager, broker, tiny_model, tmp_path, thread):
    manager.environ |= {"FAULTS_SILENCE_S": "0.5", "METRONOME_S": "0.05"}
    agent = agent_under(manager, tmp_path, broker, tiny_model)
    with agent, requester(broker) as client:
        agent.wait_said("engine.ready")
        manager.hears_life(1)
        (manager.freeze / thread).touch()
        if thread == "engine-in":  # what it does not hear makes the engine one to be killed, which main waits for
            client.submit("edge-01", prompt="Hello", max_tokens=1, model="t")
        assert manager.is_silent()
        assert agent.process.poll() is None
        wait_for(lambda: thread in stuck(agent) or thread == "engine-in", "the thread to be told of")


def test_the_agent_ends_when_its_main_thread_fails(broker, tmp_path, tiny_model):
    """Its other threads do not keep it: nobody would look after engines. Where it failed is said, not with what."""
    models = [{"name": "tiny", "path": str(tiny_model), "context_tokens": 256}]
    with AgentProcess(folder=tmp_path / "a", broker=broker, models=models, environ=faulty(FAULTS_CRASH="1")) as agent:
        assert agent.process.wait(30) == 1
        (crash,) = agent.said("thread.crashed")
        assert (crash["thread"], crash["error"]) == ("main", "ZeroDivisionError")
        assert agent.said("agent.crashed")
