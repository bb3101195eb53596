"""What the parts of an agent tell each other: for each piece of news, everybody whom it concerns."""

from collections.abc import Mapping, Sequence

from edge_agent.agent.parts import Parts
from edge_agent.agent.self_report import SelfReport
from edge_agent.base.errors import EdgeAgentError
from edge_agent.engine.hosting.runner import Listener
from edge_agent.engine.messages import Event
from edge_agent.jobs import chronicle
from edge_agent.jobs.job import Failure, Job
from edge_agent.jobs.store import Operation
from edge_agent.mqtt.link import Callbacks, Receipt
from edge_agent.protocol.messages import Inbound, Publication


class EventRouter:
    """Told on the thread of whoever has something to tell: none of this may block."""

    def __init__(self, parts: Parts, account: SelfReport) -> None:
        self._parts = parts
        self._account = account
        self._since_s = {serve.name: parts.queue.clock.now_s() for serve in parts.settings.models.serve}
        """Since when each model is not loaded, on the queue's clock; while it is: since when it was not."""

    def changed(self, changes: Sequence[Job]) -> None:
        """Jobs have changed; told by the store's thread after each commit."""
        parts = self._parts
        chronicle.note(changes)
        parts.counters.changed(changes)
        parts.supervisor.demand(parts.queue.overview.demand([serve.name for serve in parts.settings.models.serve]))
        parts.outbox.announce(parts.queue, changes)
        parts.preparation.changed(changes)
        parts.watcher.told(changes)
        parts.dispatcher.look()
        parts.pools.look()

    def report(self, publication: Publication) -> None:
        """Say how we are while somebody hears it: a report of an hour ago is no news, and must push no state out."""
        if self._parts.link.connected:
            self._parts.outbox.say(publication)

    def decided(self) -> None:
        """A build was chosen, fetched, or is missing: the main thread looks at once, the fleet is told."""
        self._parts.supervisor.hurry()
        self._parts.announcer.refresh()

    def pulled(self) -> None:
        """A build came that an administrator had ordered: what it is for is decided anew."""
        self._parts.provision.look()
        self._parts.supervisor.hurry()

    def restrained(self) -> None:
        """The agent holds back more, or less: everybody whom it concerns looks anew, the fleet is told."""
        self._parts.wake()
        self._parts.dispatcher.look()
        self._parts.announcer.refresh()

    # From engines

    def of_engines(self) -> Listener:
        """Return whom the supervisor tells."""
        return Listener(
            event=self._heard,
            up=self._engine_up,
            lost=self._engine_lost,
            unloaded=self._engine_unloaded,
            free=self._parts.dispatcher.look,
            failed=self._engine_failed,
        )

    def _heard(self, model: str, event: Event) -> None:
        self._parts.counters.heard(model, event)
        self._parts.dispatcher.said(model, event)

    def _engine_failed(self, model: str, failure: Failure) -> None:
        """A model cannot be loaded: jobs it was given in the hope that it can are answered, as those are that come now.

        What was accepted before, while it was loaded or by an earlier life of the agent, waits for somebody to mend it.
        """
        self._parts.announcer.refresh()
        if failure.retryable:
            return
        error = EdgeAgentError(failure.code, f"model: cannot be loaded: {failure.message}")
        self._parts.store.do(
            lambda queue: queue.disappoint(model, Failure.of(error), since_s=self._since_s[model]),
            lambda jobs: self._parts.outbox.hand_back(jobs, error),
        )

    def _engine_unloaded(self, model: str) -> None:
        self._since_s[model] = self._parts.store.now_s()
        self._parts.dispatcher.unloaded(model)
        self._parts.announcer.refresh()

    def _engine_up(self, model: str, load_s: float) -> None:
        self._parts.dispatcher.up(model, load_s)
        self._parts.preparation.look()
        self._parts.announcer.refresh()

    def _engine_lost(self, model: str, failure: Failure, place: str | None) -> None:
        self._since_s[model] = self._parts.store.now_s()
        self._parts.counters.lost(model, moved=place is not None)
        self._parts.dispatcher.lost(model, failure, place)
        self._parts.announcer.refresh()

    # From the broker

    def of_link(self) -> Callbacks:
        """Return whom the agent's own connection tells."""
        return Callbacks(
            receive=self.receive,
            up=self._up,
            down=self._down,
            answered=lambda mid, reason: self._parts.outbox.answered(mid, reason),  # noqa: PLW0108 - made later
            subscribed=self._subscribed,
            will=lambda conn_seq: self._parts.announcer.will(conn_seq),  # noqa: PLW0108 - made later
        )

    def of_watch_link(self) -> Callbacks:
        """Return whom the connection that watches tells."""
        return Callbacks(
            receive=self._parts.watcher.receive,
            subscribed=self._watch_subscribed,
            down=lambda _reason: self._parts.announcer.refresh(),
        )

    def receive(self, inbound: Inbound, receipt: Receipt) -> None:
        """A message came for the agent."""
        parts = self._parts
        acknowledge = receipt.acknowledge
        home = inbound.topic in parts.home.topics
        if home or parts.announcer.owns(inbound.topic):
            (parts.home if home else parts.announcer).seen(inbound)
            # Nothing to store, but acknowledged in its turn: MQTT 5 wants the order of arrival.
            parts.store.put(
                Operation(lambda _queue: None, lambda _none: acknowledge(), refuse=lambda _error: acknowledge())
            )
        elif parts.topics.parse_admin(inbound.topic) is not None:
            parts.order_intake.receive(inbound, acknowledge)
        else:
            parts.intake.receive(inbound, acknowledge)

    def _up(self, conn_seq: int) -> None:
        self._parts.pools.reset()
        self._parts.announcer.birth(conn_seq)
        self._parts.home.announce()
        self._parts.outbox.wake()

    def _down(self, reason: str) -> None:
        self._parts.wake()
        if reason == "duplicate_agent":
            self._parts.announcer.note_duplicate()

    def _subscribed(self, refused: Mapping[str, str]) -> None:
        self._account.deaf = _with_reasons(refused)
        self._parts.announcer.refresh()

    def _watch_subscribed(self, refused: Mapping[str, str]) -> None:
        self._account.unwatched = _with_reasons(refused)
        self._parts.announcer.refresh()


def _with_reasons(refused: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{topic} ({why})" for topic, why in refused.items())
