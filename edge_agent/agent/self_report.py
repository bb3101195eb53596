"""What an agent says of itself: how it is and why, what it serves, decided and measured."""

import os
from collections.abc import Sequence
from dataclasses import replace

from edge_agent import __version__
from edge_agent.agent.parts import Parts
from edge_agent.base.awake import awake_s
from edge_agent.base.heartbeat import stuck
from edge_agent.control.messages import Standing
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.health.birth import birth_certificate, decision_report
from edge_agent.health.condition import Condition, condition
from edge_agent.health.counters import Counts
from edge_agent.mqtt.welcome import RETAINED
from edge_agent.protocol.payloads import DecisionReport, EngineReading, Info


class SelfReport:
    """Answers whoever asks, on any thread.

    `draining`: it takes leave. `deaf`, `unwatched`: filters the broker refuses to its two connections.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.draining = False
        self.deaf: tuple[str, ...] = ()
        self.unwatched: tuple[str, ...] = ()

    def condition(self) -> Condition:
        """Return how it is."""
        return self._condition(
            self._parts.engines.statuses(),
            unwatched=self.unwatched,
            limited=(*self._limits(), *self._parts.pools.reasons),
            blind=self._blind(),
            strained=self._parts.restraint.reasons,
            clock=self._parts.queue.clock.doubt,
            unserved=self._parts.http.trouble if self._parts.http else "",
        )

    def _condition(
        self,
        engines: Sequence[EngineStatus],
        *,
        unwatched: tuple[str, ...] = (),
        limited: tuple[str, ...] = (),
        blind: bool = False,
        strained: tuple[str, ...] = (),
        clock: str = "",
        unserved: str = "",
    ) -> Condition:
        parts, trouble = self._parts, self._parts.store.trouble
        return condition(
            engines=engines,
            draining=self.draining,
            storage=trouble.trouble if trouble else "",
            duplicate=parts.announcer.duplicate,
            deaf=self.deaf,
            unwatched=unwatched,
            limited=limited,
            blind=blind,
            strained=strained,
            stuck=self.stuck(),
            clock=clock,
            unserved=unserved,
        )

    def _limits(self) -> tuple[str, ...]:
        lacks = self._parts.link.lacks if self._parts.link.connected else ()
        return ("the broker retains nothing: who comes later does not see this agent",) if RETAINED in lacks else ()

    def _blind(self) -> bool:
        parts = self._parts
        return bool(parts.link.connected and parts.watch_link and parts.watch_link.trouble)

    def stuck(self) -> tuple[str, ...]:
        """Return the threads that do not come back."""
        return stuck(self._parts.beats, now_s=awake_s())

    def line(self) -> str:
        """Return one line for the service manager."""
        parts, condition = self._parts, self.condition()
        running = sum(parts.dispatcher.running(serve.name) for serve in parts.settings.models.serve)
        where = "connected" if parts.link.connected else f"no broker ({parts.link.trouble or 'not reached yet'})"
        return f"{condition.health}, {where}, {running} running" + "".join(f"; {each}" for each in condition.reasons)

    def welcoming(self) -> bool:
        """Return whether jobs may come that others could do as well: well, but for what is held back.

        On another device than the best it takes them too, or a driver that fails everywhere would leave a pool empty.
        What it does not get to watch is no job of a pool.
        """
        engines = [replace(each, fallback=None) for each in self._parts.engines.statuses()]
        return self._parts.restraint.in_pools and self._condition(engines).health == "ready"

    # For the fleet

    def describe(self, conn_seq: int) -> Info:
        """Return the birth certificate for a connection."""
        parts = self._parts
        return birth_certificate(
            parts.settings,
            parts.machine,
            parts.engines.statuses(),
            self.condition(),
            boot_id=parts.boot_id,
            conn_seq=conn_seq,
        )

    def decisions(self) -> DecisionReport:
        """Return what runs where and why."""
        parts = self._parts
        return decision_report(
            parts.settings.models.serve,
            parts.provision.decisions(),
            set_aside=parts.provision.set_aside(),
            compared=parts.provision.compared(),
            agent=parts.settings.agent.id,
            boot_id=parts.boot_id,
        )

    def reading(self, engine: EngineStatus, counts: Counts) -> EngineReading:
        """Return how an engine is, and what was counted of its model."""
        parts = self._parts
        process = parts.engines.process(engine.model)
        counted = counts.models.get(engine.model)
        share = counted.cached_share if counted else None
        return EngineReading(
            model=engine.model,
            state=engine.phase,
            reason=engine.reason or None,
            device=engine.device or None,
            fallback_from=engine.fallback.device if engine.fallback else None,
            running=parts.dispatcher.running(engine.model),
            lanes=engine.limits.parallel if engine.limits else None,
            context_tokens=engine.limits.context_tokens if engine.limits else None,
            anonymous_bytes=process.anonymous_bytes() if process else None,
            mapped_bytes=process.mapped_bytes() if process else None,
            prompt_per_second=_rounded(process.prefill_per_s) if process else None,
            generate_per_second=_rounded(process.generate_per_s) if process else None,
            first_token_p50_ms=_rounded(counted.first_token_p50_ms) if counted else None,
            first_token_p95_ms=_rounded(counted.first_token_p95_ms) if counted else None,
            cached_share=None if share is None else round(share, 3),
        )

    # For somebody on this machine

    def standing(self) -> Standing:
        """Return how it is at this moment; waits for the queue's counts, but not long."""
        condition, trouble = self.condition(), self._parts.link.trouble
        return Standing(
            agent=self._parts.settings.agent.id,
            version=__version__,
            pid=os.getpid(),
            boot_id=self._parts.boot_id,
            health=condition.health,
            reasons=condition.reasons,
            connected=self._parts.link.connected,
            trouble=None if trouble is None else str(trouble),
            telemetry=self._parts.reporter.now(self),
        )


def _rounded(value: float | None) -> float | None:
    return value if value is None else round(value, 1)
