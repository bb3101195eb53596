"""The parts of one agent, by name."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.base.heartbeat import Heartbeat
from edge_agent.control.orders import Orders
from edge_agent.control.server import ControlServer
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
from edge_agent.serving.pool import Pools
from edge_agent.serving.presence import Announcer
from edge_agent.serving.reporter import Reporter
from edge_agent.settings.load import Settings
from edge_agent.watch.decide import Rule
from edge_agent.watch.watcher import Watcher
from hardware.machine import Machine

if TYPE_CHECKING:
    from edge_agent.integrations.http import HttpServer


class Parts:
    """What one agent is made of, from the bottom up. `build` fills it in.

    A part reaches one that is made after it by a call that looks here when it is needed.
    """

    settings: Settings
    root: Path
    """Where the machine's own files (proc, sys, …) are read from."""
    wake: Callable[[], None]
    """Makes the main thread look after engines and connections at once."""
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
    queue: Queue
    store: Store
    link: Link
    outbox: Outbox
    announcer: Announcer
    home: HomeAssistant
    restraint: Restraint
    provision: Provision
    dispatcher: Dispatcher
    preparation: Preparation
    supervisor: Supervisor
    pulls: Pulls
    orders: Orders
    intake: Intake
    order_intake: OrderIntake
    pools: Pools
    watcher: Watcher
    watch_link: Link | None
    former: Former
    reporter: Reporter
    control: ControlServer
    http: "HttpServer | None"

    @property
    def links(self) -> Sequence[Link]:
        """The connections that are there for good."""
        return [self.link, self.watch_link] if self.watch_link else [self.link]

    @property
    def beats(self) -> Iterator[Heartbeat]:
        """What the threads say of themselves; those of engines have main wait for them, which shows."""
        yield self.main
        yield from (link.beat for link in (*self.links, *self.pools.links, *self.former.links))
        yield from (self.store.beat, self.outbox.beat, self.dispatcher.beat, self.preparation.beat)
        yield from (self.reporter.beat, self.provision.beat, self.pulls.beat, self.control.beat)
        if self.http is not None:
            yield self.http.beat
