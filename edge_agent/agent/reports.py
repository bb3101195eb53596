"""Makes what tells how an agent is."""

from functools import partial
from typing import TYPE_CHECKING

from edge_agent.agent.events import EventRouter
from edge_agent.agent.parts import Parts
from edge_agent.agent.self_report import SelfReport
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.orders import LOCAL
from edge_agent.control.server import ControlServer
from edge_agent.health.snapshot import Snapshots
from edge_agent.jobs.ids import job_id
from edge_agent.protocol.encode import Speech
from edge_agent.serving.reporter import Reporter
from hardware.gauges import gauges

if TYPE_CHECKING:
    from edge_agent.integrations.http import HttpServer


def reports(parts: Parts, account: SelfReport, news: EventRouter) -> None:
    """Make what tells how the agent is: the fleet, somebody on this machine, Prometheus."""
    settings = parts.settings
    parts.reporter = Reporter(
        topics=parts.topics,
        boot_id=parts.boot_id,
        period_s=settings.telemetry.period_s,
        snapshots=Snapshots(
            parts.root,
            memory=parts.machine.memory,
            state_dir=settings.agent.state_dir,
            generated=lambda: parts.counters.generated,
            gpus=gauges(parts.root, parts.machine.accelerators),
        ),
        counters=parts.counters,
        store=parts.store,
        outbox=parts.outbox,
        engines=parts.supervisor.statuses,
        reading=account.reading,
        condition=account.condition,
        connections=lambda: parts.link.connections,
        look=parts.restraint.look,
        restraint=lambda: parts.restraint.level,
        refresh=partial(_refresh, parts),
        watches=parts.watcher.readings,
        say=news.report,
    )
    parts.control = ControlServer(
        settings.agent.state_dir,
        store=parts.store,
        desk=JobAdmin(
            speech=Speech(parts.topics),
            cancel_running=parts.dispatcher.cancel,
            resolve=parts.supervisor.resolve,
            new_id=job_id,
        ),
        state=account.standing,
        order=partial(parts.orders.take, LOCAL),
    )
    parts.http = _http(parts, account)


def _refresh(parts: Parts) -> None:
    parts.announcer.refresh()
    parts.home.refresh()


def _http(parts: Parts, account: SelfReport) -> "HttpServer | None":
    asked = parts.settings.prometheus
    if asked.port is None:
        return None
    from edge_agent.integrations import prometheus  # noqa: PLC0415 - costs memory, and few ask for it

    return prometheus.server(
        asked.host,
        asked.port,
        prometheus.MetricSources(
            telemetry=lambda: parts.reporter.latest,
            counts=parts.counters.counts,
            condition=account.condition,
            connected=lambda: parts.link.connected,
            stuck=account.stuck,
        ),
    )
