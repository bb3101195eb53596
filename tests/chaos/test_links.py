"""Nothing is lost, doubled or hoarded when the network cuts, stalls, delays or swallows."""

import contextlib
import random
import sqlite3
import sys
import threading
import time

import psutil
import pytest
from flow import check, flowing, number, rows
from proxy import Proxy
from running import PATIENCE_S, AgentProcess, faulty, requester, wait_for

from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.protocol.payloads import Chunk

pytestmark = [pytest.mark.broker, pytest.mark.engine]

FAULTS = number("CHAOS_FAULTS", 8)
SEED = number("CHAOS_SEED", 1)
FAULT_S = 30.0
"""Bound on what one fault with its recovery may add to the test."""
KEEPALIVE_S = 5
"""The least the settings allow: how long a silent connection may stay unnoticed, and half of that again."""


class Weather:
    """What can happen to a link."""

    def __init__(self, chance):
        self._chance = chance
        self._pause = threading.Event()

    def cut(self, proxy):
        with reconnecting(proxy):
            proxy.cut()

    def half_open(self, proxy):
        """Not waited for here: it goes unnoticed for seconds, while other things happen."""
        proxy.half_open()

    def stall(self, proxy):
        with proxy.stalled():
            self._pause.wait(self._chance.uniform(1.0, 3.0))

    def delay(self, proxy):
        with proxy.delayed(self._chance.uniform(0.05, 0.2)):
            self._pause.wait(self._chance.uniform(1.0, 2.0))


@contextlib.contextmanager
def reconnecting(proxy):
    """Wait, after the block, for a connection newer than those before it."""
    before = proxy.accepted
    yield
    wait_for(lambda: proxy.accepted > before, "a new connection")


def kinds(chance, count):
    """Return that many kinds of weather in random order, each about as often."""
    drawn = (["cut", "stall", "delay", "half_open"] * count)[:count]
    chance.shuffle(drawn)
    return drawn


@pytest.mark.timeout(120 + FAULT_S * FAULTS)
def test_bad_links_lose_no_job_double_no_result_and_repeat_no_work(broker, tmp_path, tiny_model):
    """Whatever the network does to agent and requester: each job runs once, ends once, and its requester knows."""
    chance = random.Random(SEED)
    models = [{"name": "tiny", "path": str(tiny_model), "parallel": 4, "context_tokens": 2048}]
    environ = faulty(EDGE_AGENT_MQTT__KEEPALIVE_S=str(KEEPALIVE_S))
    with (
        Proxy(broker) as to_agent,
        Proxy(broker) as to_alice,
        AgentProcess(folder=tmp_path / "agent", broker=to_agent, models=models, environ=environ) as agent,
    ):
        agent.wait_said("engine.ready")
        weather = Weather(chance)
        ways = {"alice": to_alice, "bob": broker}
        with flowing(ways, watched=broker, seed=SEED, keepalive_s=KEEPALIVE_S) as seen:
            for kind in kinds(chance, FAULTS):
                getattr(weather, kind)(chance.choice((to_agent, to_alice)))
        assert agent.stop() == 0
    sys.stdout.write(f"{FAULTS} faults, {seen.summary()}\n")
    check(seen, agent.state_dir)
    assert {ended.result.state for ended in seen.ended} <= {"succeeded", "canceled"}
    assert max(row["attempt"] for row in rows(agent.state_dir)) == 1


def test_a_stalled_link_under_streaming_load_costs_chunks_not_memory(broker, tmp_path, tiny_model):
    """While nobody reads what the agent streams, it drops text beyond a bound and keeps every result."""
    jobs, pieces = 240, 10
    models = [{"name": "fountain", "path": str(tiny_model), "parallel": 16}]
    environ = faulty(FAULTS_BACKEND="fountain:load")
    with (
        Proxy(broker) as proxy,
        AgentProcess(folder=tmp_path / "agent", broker=proxy, models=models, environ=environ) as agent,
        requester(broker) as client,
    ):
        agent.wait_said("engine.ready")
        warm_up = [client.submit("edge-01", prompt=f"Warm up {n}", max_tokens=pieces) for n in range(32)]
        piece = warm_up[0].result(PATIENCE_S).text
        for handle in warm_up:
            handle.result(PATIENCE_S)
        handles = [client.submit("edge-01", prompt=f"Number {n}", max_tokens=pieces) for n in range(jobs)]
        wait_for(lambda: all(handle.status for handle in handles), "all to be accepted")
        memory = psutil.Process(agent.pid).memory_info
        before_bytes, most_bytes = memory().rss, 0

        def ended():
            nonlocal most_bytes
            most_bytes = max(most_bytes, memory().rss)
            return finished(agent.state_dir) >= jobs

        with proxy.stalled():
            wait_for(ended, "most jobs to end while nobody listens")
        results = [handle.result(PATIENCE_S) for handle in handles]
        gaps = sum(gap(handle) for handle in handles)
        growth_bytes = most_bytes - before_bytes
        sys.stdout.write(f"{growth_bytes / 1e6:.1f} MB more, {gaps} of {jobs} jobs with gaps\n")
    assert {(result.state, result.text) for result in results} == {("succeeded", piece)}
    assert growth_bytes < 15e6
    assert gaps, "the stall was too short to drop anything"


def finished(state_dir):
    """Return how many jobs have ended in a running agent's database."""
    with contextlib.closing(sqlite3.connect(f"file:{state_dir / 'queue.db'}?mode=ro", uri=True)) as db:
        return db.execute("SELECT count(*) FROM jobs WHERE finished_s IS NOT NULL").fetchone()[0]


def gap(handle):
    """Whether chunks of a job are missing."""
    seqs = sorted(update.seq for update in handle.updates(PATIENCE_S) if isinstance(update, Chunk))
    return seqs != list(range(handle.result(0).last_seq + 1))


def test_agents_cut_off_together_do_not_come_back_together(broker):
    """After a cut that hits a whole fleet, its links come back spread over the wait, not in one moment."""
    came_s = []
    with Proxy(broker) as proxy, contextlib.ExitStack() as stack:
        for agent in range(12):
            access = Access(proxy.host, proxy.port, client_id=f"agent-{agent}")
            link = Link(access, subscriptions=())
            link.on_up.connect(lambda _epoch: came_s.append(time.monotonic()))
            stack.callback(link.stop)
            link.start()
        wait_for(lambda: len(came_s) == 12, "all to connect")
        came_s.clear()
        proxy.cut()
        wait_for(lambda: len(came_s) == 12, "all to come back")
    # Drawn from the upper half of the first wait, 0.5 to 1 s, twelve fall within a third of it once in a thousand runs.
    assert max(came_s) - min(came_s) > 0.15
