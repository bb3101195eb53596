"""Many made-up agents in one process, for as long as they are asked for.

Each has a connection of its own, with its own will, so that the broker has as much to do as with real ones. paho has a
thread for each connection, which mostly waits; everything else is done on one thread.
"""

import heapq
import itertools
import queue as stdlib_queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from edge_agent.mqtt.access import Access
from edge_agent.simulator.agent import SimulatedAgent
from edge_agent.simulator.machine import MAKES, SMALL, Make, SimulatedMachine

AGENTS_MAX = 300
"""In one process: each connection takes three descriptors, and select, with which paho waits, ends at 1024."""
START_S = 0.01
"""Between two connections, so that a broker's queue of new ones is not filled."""
SESSION_S = 60
"""How long the broker keeps a session: longer than the delay of a will, or wills would come at once."""
SETTLE_S = 5.0
"""How long the farewells may take to leave."""
SMALL_ONE_IN = 40
"""So many agents run on a machine that is too small for any build."""
TICK_S = 0.5
AT_ONCE = 200
"""Messages that are dealt with before what has become due is done."""


def names(agents: int, *, prefix: str, first: int) -> tuple[str, ...]:
    """Return the names of so many agents, numbered from `first`."""
    return tuple(f"{prefix}-{number:03}" for number in range(first, first + agents))


def makes(agents: int) -> list[Make]:
    """Return the sort of machine of each agent: all sorts in turn, now and then one that is too small."""
    return [
        SMALL if number % SMALL_ONE_IN == SMALL_ONE_IN - 1 else MAKES[number % len(MAKES)] for number in range(agents)
    ]


class Simulation:
    """So many agents, from the first connection to the last farewell.

    An answer takes `token_s` for each token; None: what the machine would take. `seed` makes machines and their work
    repeatable, but for the moments at which messages come.
    """

    def __init__(
        self,
        access: Access,
        *,
        root: str,
        agents: Sequence[str],
        period_s: float,
        token_s: float | None = None,
        seed: int = 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._notes: stdlib_queue.SimpleQueue[tuple[float, Callable[[], None]]] = stdlib_queue.SimpleQueue()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stop = threading.Event()
        self.agents = []
        for name, make in zip(agents, makes(len(agents)), strict=True):
            chance = random.Random(f"{seed} {name}")  # noqa: S311 - dice, no secrets
            pretence = SimulatedMachine(make, chance)
            speed = pretence.tokens_per_s
            self.agents.append(
                SimulatedAgent(
                    replace(access, client_id=name, clean_start=True, session_expiry_s=SESSION_S),
                    root=root,
                    pretence=pretence,
                    period_s=period_s,
                    token_s=token_s if token_s is not None else (1 / speed if speed else 0.0),
                    do=self._do,
                    chance=chance,
                    now_s=now_s,
                )
            )

    @property
    def connected(self) -> int:
        """How many agents the broker has."""
        return sum(agent.connected for agent in self.agents)

    @property
    def counts(self) -> Counter[str]:
        """What happened to jobs so far, over all agents."""
        total: Counter[str] = Counter()
        for agent in self.agents:
            total.update(agent.counts)
        return total

    def stop(self) -> None:
        """Let `run` end; may be called from a signal."""
        self._stop.set()

    def run(self, for_s: float, *, look: Callable[[], None] = lambda: None) -> None:
        """Live for so long, then leave in order; `look` is called now and then."""
        started: list[SimulatedAgent] = []
        try:
            for place, agent in enumerate(self.agents):
                self._do(place * START_S, partial(self._start, agent, started))
            self._live(self._now_s() + for_s, look)
        finally:
            for agent in started:
                agent.farewell()
            self._settle()
            for agent in started:
                agent.stop()

    def _settle(self) -> None:
        end_s = self._now_s() + SETTLE_S
        while self._now_s() < end_s and any(agent.connected and not agent.settled for agent in self.agents):
            self._take(TICK_S)

    def _start(self, agent: SimulatedAgent, started: list[SimulatedAgent]) -> None:
        started.append(agent)
        agent.start()

    def _do(self, after_s: float, act: Callable[[], None]) -> None:
        """Have something done on the simulation's thread; may be called from any."""
        self._notes.put((self._now_s() + after_s, act))

    def _live(self, end_s: float, look: Callable[[], None]) -> None:
        looked_s = self._now_s()
        while not self._stop.is_set() and (now_s := self._now_s()) < end_s:
            self._take(min(end_s, self._due[0][0] if self._due else end_s, now_s + TICK_S) - now_s)
            while self._due and self._due[0][0] <= self._now_s():
                _, _, act = heapq.heappop(self._due)
                act()
            if self._now_s() - looked_s >= TICK_S:
                looked_s = self._now_s()
                look()

    def _take(self, wait_s: float) -> None:
        """Wait for something to do; do what is due and line up the rest."""
        timeout_s = max(0.0, wait_s)
        for _ in range(AT_ONCE):
            try:
                due_s, act = self._notes.get(timeout=timeout_s)
            except stdlib_queue.Empty:
                return
            timeout_s = 0.0
            if due_s <= self._now_s():
                act()
            else:
                heapq.heappush(self._due, (due_s, next(self._order), act))
