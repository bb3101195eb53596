"""Who hears what: for each event of a part, everybody whom it concerns."""

from collections.abc import Mapping, Sequence

from edge_agent.agent.parts import Parts
from edge_agent.agent.self_report import SelfReport
from edge_agent.base.errors import EdgeAgentError
from edge_agent.jobs import chronicle
from edge_agent.jobs.job import Failure, Job
from edge_agent.jobs.store import Operation
from edge_agent.mqtt.link import Receipt
from edge_agent.protocol.messages import Inbound


class EventRouter:
    """Connects the parts. What it does is done on the thread of whoever has something to tell: none of it may block."""

    def __init__(self, parts: Parts, report: SelfReport) -> None:
        self._parts = parts
        self._report = report
        self._since_s = dict.fromkeys(parts.models, parts.queue.clock.now_s())
        """Since when each model is not loaded, on the queue's clock; while it is: since when it was not."""

    def connect(self) -> None:
        """Let everybody hear what concerns them. Called once, before anything is started."""
        parts, refresh = self._parts, self.refresh
        parts.store.on_changed.connect(self.on_jobs_changed)
        parts.preparation.on_ready.connect(parts.dispatcher.look)
        parts.intake.on_cancel.connect(parts.dispatcher.cancel)
        parts.intake.on_rejected.connect(parts.counters.rejected)
        parts.job_admin.on_cancel.connect(parts.dispatcher.cancel)
        parts.restraint.on_changed.connect(parts.wake.set, parts.dispatcher.look, refresh)
        parts.provision.on_changed.connect(parts.supervisor.hurry, refresh)
        parts.pulls.on_pulled.connect(parts.provision.look, parts.supervisor.hurry)
        parts.pools.on_received.connect(parts.intake.receive)
        parts.pools.on_changed.connect(refresh)
        parts.reporter.on_due.connect(refresh, parts.home.refresh)
        for speaker in (parts.announcer, parts.home, parts.order_intake):
            speaker.on_said.connect(parts.outbox.say)
        self._connect_engines()
        self._connect_links()

    def _connect_engines(self) -> None:
        parts, events = self._parts, self._parts.supervisor.events
        events.on_event.connect(parts.counters.heard, parts.dispatcher.said)
        events.on_up.connect(parts.dispatcher.up, self.on_engine_up)
        events.on_lost.connect(self.on_engine_lost)
        events.on_unloaded.connect(self.on_engine_unloaded)
        events.on_free.connect(parts.dispatcher.look)
        events.on_failed.connect(self.on_engine_failed)

    def _connect_links(self) -> None:
        parts, link, watch = self._parts, self._parts.link, self._parts.watch_link
        link.on_received.connect(self.on_received)
        link.on_up.connect(self.on_connected)
        link.on_down.connect(self.on_disconnected)
        link.on_answered.connect(parts.outbox.answered)
        link.on_subscribed.connect(self.on_subscribed)
        if watch is not None:
            watch.on_received.connect(parts.watcher.receive)
            watch.on_subscribed.connect(self.on_watch_subscribed)
            watch.on_down.connect(lambda _reason: self.refresh())

    def refresh(self) -> None:
        """Tell the fleet how we are, if that is news."""
        self._parts.announcer.refresh(self._report)

    def on_jobs_changed(self, changes: Sequence[Job]) -> None:
        """Jobs have changed; told by the store's thread after each commit."""
        parts = self._parts
        chronicle.note(changes)
        parts.counters.changed(changes)
        parts.supervisor.demand(parts.queue.overview.demand(parts.models))
        parts.outbox.announce(parts.queue, changes)
        parts.preparation.changed(changes)
        parts.watcher.told(changes)
        parts.dispatcher.look()
        parts.pools.look()

    # Of engines

    def on_engine_up(self, _model: str, _load_s: float) -> None:
        """A model is ready."""
        self._parts.preparation.look()
        self.refresh()

    def on_engine_lost(self, model: str, failure: Failure, place: str | None) -> None:
        """An engine is gone that should not be."""
        self._since_s[model] = self._parts.store.now_s()
        self._parts.counters.lost(model, moved=place is not None)
        self._parts.dispatcher.lost(model, failure, place)
        self.refresh()

    def on_engine_unloaded(self, model: str) -> None:
        """An engine goes in order."""
        self._since_s[model] = self._parts.store.now_s()
        self._parts.dispatcher.unloaded(model)
        self.refresh()

    def on_engine_failed(self, model: str, failure: Failure) -> None:
        """A model cannot be loaded: jobs it was given in the hope that it can are answered, as those are that come now.

        What was accepted before, while it was loaded or by an earlier life of the agent, waits for somebody to mend it.
        """
        self.refresh()
        if failure.retryable:
            return
        error = EdgeAgentError(failure.code, f"model: cannot be loaded: {failure.message}")
        self._parts.store.do(
            lambda queue: queue.disappoint(model, Failure.of(error), since_s=self._since_s[model]),
            lambda jobs: self._parts.outbox.hand_back(jobs, error),
        )

    # Of the broker

    def on_received(self, inbound: Inbound, receipt: Receipt) -> None:
        """A message came for the agent."""
        parts = self._parts
        acknowledge = receipt.acknowledge
        home = inbound.topic in parts.home.topics
        if home or parts.announcer.owns(inbound.topic):
            if home:
                parts.home.seen(inbound)
            else:
                parts.announcer.seen(inbound, self._report)
            # Nothing to store, but acknowledged in its turn: MQTT 5 wants the order of arrival.
            parts.store.put(
                Operation(lambda _queue: None, lambda _none: acknowledge(), refuse=lambda _error: acknowledge())
            )
        elif parts.topics.parse_admin(inbound.topic) is not None:
            parts.order_intake.receive(inbound, acknowledge)
        else:
            parts.intake.receive(inbound, acknowledge)

    def on_connected(self, conn_seq: int) -> None:
        """The broker is there."""
        self._parts.pools.reset()
        self._parts.announcer.birth(conn_seq, self._report)
        self._parts.home.announce()
        self._parts.outbox.wake()

    def on_disconnected(self, reason: str) -> None:
        """The broker is gone."""
        self._parts.wake.set()
        if reason == "duplicate_agent":
            self._parts.announcer.note_duplicate()

    def on_subscribed(self, refused: Mapping[str, str]) -> None:
        """The broker has said what it refuses to the agent's own connection."""
        self._report.deaf = _with_reasons(refused)
        self.refresh()

    def on_watch_subscribed(self, refused: Mapping[str, str]) -> None:
        """The broker has said what it refuses to the connection that watches."""
        self._report.unwatched = _with_reasons(refused)
        self.refresh()


def _with_reasons(refused: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{topic} ({why})" for topic, why in refused.items())
