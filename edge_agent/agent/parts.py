"""The parts of one agent, in the order in which they are made; each knows those before it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from edge_agent.base.heartbeat import Heartbeat
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.orders import Orders
from edge_agent.control.server import ControlServer
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.health.counters import Counters
from edge_agent.health.restraint import Restraint
from edge_agent.images.spool import Spool
from edge_agent.integrations.homeassistant import HomeAssistant
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.models.catalogue import Catalogue
from edge_agent.models.provision import Provision
from edge_agent.models.pulls import Pulls
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link
from edge_agent.protocol.topics import Topics
from edge_agent.running.dispatcher import Dispatcher
from edge_agent.running.preparation import Preparation
from edge_agent.serving.former import Former
from edge_agent.serving.intake import Intake
from edge_agent.serving.order_intake import OrderIntake
from edge_agent.serving.outbox import Outbox
from edge_agent.serving.pool import PoolRoom, Pools
from edge_agent.serving.presence import Announcer
from edge_agent.serving.reporter import Reporter
from edge_agent.settings.load import Settings
from edge_agent.watch.decide import Rule
from edge_agent.watch.watcher import Watcher
from hardware.machine import Machine

if TYPE_CHECKING:
    from edge_agent.integrations.http import HttpServer


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What an agent stands on; it needs no queue yet. `root` is where the machine's own files (proc, sys, …) are.

    `wake` has the main thread look after engines and connections at once; `main` is its heartbeat.
    """

    settings: Settings
    root: Path
    wake: Event
    main: Heartbeat
    boot_id: str
    machine: Machine
    topics: Topics
    rules: tuple[Rule, ...]
    access: Access
    catalogue: Catalogue
    pace: Pace
    counters: Counters
    spool: Spool
    engines: Engines

    @property
    def models(self) -> list[str]:
        """The names of the served models."""
        return [serve.name for serve in self.settings.models.serve]


@dataclass(frozen=True, kw_only=True)
class Told(Ground):
    """What keeps jobs and tells of them: the queue's owner, and the agent's own connection."""

    queue: Queue
    store: Store
    announcer: Announcer
    home: HomeAssistant
    link: Link
    outbox: Outbox


@dataclass(frozen=True, kw_only=True)
class Running(Told):
    """What runs jobs."""

    restraint: Restraint
    provision: Provision
    supervisor: Supervisor
    dispatcher: Dispatcher
    preparation: Preparation
    pulls: Pulls
    orders: Orders


@dataclass(frozen=True, kw_only=True)
class Parts(Running):
    """All of them: with what brings jobs (requests, those of pools, messages that are watched), and what reports."""

    room: PoolRoom
    intake: Intake
    order_intake: OrderIntake
    pools: Pools
    watcher: Watcher
    watch_link: Link | None
    former: Former
    reporter: Reporter
    job_admin: JobAdmin
    control: ControlServer
    http: "HttpServer | None"

    @property
    def links(self) -> Sequence[Link]:
        """The connections that are there for good."""
        return [self.link, self.watch_link] if self.watch_link else [self.link]

    @property
    def beats(self) -> Iterator[Heartbeat]:
        """What the threads say of themselves. Engine threads need no heartbeat: the main thread joins them."""
        yield self.main
        yield from (link.beat for link in (*self.links, *self.pools.links, *self.former.links))
        yield from (self.store.beat, self.outbox.beat, self.dispatcher.beat, self.preparation.beat)
        yield from (self.reporter.beat, self.provision.beat, self.pulls.beat, self.control.beat)
        if self.http is not None:
            yield self.http.beat
