"""Makes every part of an agent and hands it what it works with. Nothing is started here, and nothing else builds."""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edge_agent.agent.events import EventRouter
from edge_agent.agent.from_settings import access, policy
from edge_agent.agent.parts import Parts
from edge_agent.agent.reports import reports
from edge_agent.agent.self_report import SelfReport
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.control.orders import Orders
from edge_agent.engine.hosting.prover import Prover
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.health.counters import Counters
from edge_agent.health.restraint import Restraint
from edge_agent.health.snapshot import free_bytes
from edge_agent.images.decoder_process import DecoderProcess, bound_bytes
from edge_agent.images.spool import Spool
from edge_agent.integrations.homeassistant import HomeAssistant, WatchAnswers, config_topic, status_topic
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.store import Store
from edge_agent.models import build_store as models_store
from edge_agent.models import catalogue, choose
from edge_agent.models.fetch import Hub, fetch
from edge_agent.models.pins import Pins
from edge_agent.models.provision import Provision, sources
from edge_agent.models.pulls import Pulls
from edge_agent.mqtt import session
from edge_agent.mqtt.link import Link, Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.topics import KEPT, Topics
from edge_agent.running.dispatcher import Dispatcher
from edge_agent.running.preparation import Preparation
from edge_agent.serving.former import Former
from edge_agent.serving.intake import Intake
from edge_agent.serving.order_intake import SUBJECT, OrderIntake
from edge_agent.serving.outbox import Outbox
from edge_agent.serving.pool import Pools
from edge_agent.serving.presence import TAG_CHARACTERS, Announcer
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import Settings
from edge_agent.watch import rules, watcher
from edge_agent.watch.watcher import Watcher
from hardware import memory
from hardware.probe import probe


def begin(settings: Settings, *, root: Path, wake: Callable[[], None]) -> Parts:
    """Return the parts that need no queue.

    Raises SettingsError when the settings cannot be used here, PassingError when that may pass by itself.
    """
    parts = Parts()
    parts.settings = settings
    parts.root = root
    parts.wake = wake
    parts.main = Heartbeat("main")
    parts.boot_id = uuid.uuid4().hex
    parts.machine = probe(root)
    parts.topics = Topics(settings.mqtt.root, settings.agent.id)
    parts.rules = rules.read(settings, parts.topics)
    parts.access = access(settings)
    parts.catalogue = catalogue.read(settings.models.catalogue)
    parts.pace = Pace()
    parts.counters = Counters([serve.name for serve in settings.models.serve])
    parts.spool = Spool(
        settings.agent.state_dir / "images",
        quota_bytes=settings.images.quota_bytes,
        requester_quota_bytes=settings.images.requester_quota_bytes,
        image_bytes=settings.images.image_bytes,
    )
    return parts


def complete(parts: Parts, queue: Queue, *, secret: str) -> SelfReport:
    """Make the rest, each after what it holds on to; return what the agent says of itself.

    `secret` is what the ids of its connections are made with.
    """
    parts.queue = queue
    parts.access = replace(parts.access, session=session.derived(secret, "main"))
    account = SelfReport(parts)
    news = EventRouter(parts, account)
    _rows_and_broker(parts, account, news)
    _engines_and_jobs(parts, news)
    _arrivals(parts, account, news)
    reports(parts, account, news)
    return account


def _rows_and_broker(parts: Parts, account: SelfReport, news: EventRouter) -> None:
    settings, topics = parts.settings, parts.topics
    parts.store = Store(
        parts.queue,
        tell=news.changed,
        keep_finished_s=settings.queue.keep_finished_s,
        keep_finished_jobs=settings.queue.keep_finished_jobs,
    )
    parts.link = Link(
        parts.access,
        subscriptions=(
            Subscription(topics.commands),
            Subscription(topics.admin("+", SUBJECT)),
            *(Subscription(each, qos=0, needed=False) for each in topics.near_misses),
            Subscription(topics.event("presence"), retained="always"),
            # Rights that agents did not need before: on old ones they do without.
            *(Subscription(topics.event(leaf), retained="always", needed=False) for leaf in KEPT),
            *(Subscription(topics.pool_cancels(name)) for name in settings.agent.pools),
            *_of_home(settings),
        ),
        callbacks=news.of_link(),
    )
    parts.outbox = Outbox(
        link=parts.link,
        store=parts.store,
        speech=Speech(topics),
        pace=parts.pace,
        keep_text=settings.privacy.keep_text,
        load_s=lambda model: parts.supervisor.load_s(model),  # noqa: PLW0108 - made later
        chance=random.random,
    )
    parts.announcer = Announcer(
        topics,
        boot_id=parts.boot_id,
        tag=session.derived(parts.access.session, "tag")[:TAG_CHARACTERS],
        condition=account.condition,
        describe=account.describe,
        decided=account.decisions,
        say=parts.outbox.say,
    )
    parts.home = HomeAssistant(
        topics,
        prefix=settings.homeassistant.prefix if settings.homeassistant.enabled else None,
        model=parts.machine.board.model,
        period_s=settings.telemetry.period_s,
        watches=[
            WatchAnswers(rule.section.name, rules.shape(rule.answer, topic), rule.section.answer_format == "json")
            for rule in parts.rules
            for topic in rule.section.topics[:1]
        ],
        mark=settings.agent.state_dir / "homeassistant",
        say=parts.outbox.say,
    )


def _of_home(settings: Settings) -> tuple[Subscription, ...]:
    """Return what there is to hear of Home Assistant, and of what it was told."""
    if not settings.homeassistant.enabled:
        return ()
    prefix = settings.homeassistant.prefix
    announced = Subscription(config_topic(prefix, settings.agent.id), retained="always", needed=False)
    return (Subscription(status_topic(prefix)), announced)


def _engines_and_jobs(parts: Parts, news: EventRouter) -> None:
    settings = parts.settings
    models = [serve.name for serve in settings.models.serve]
    parts.restraint = Restraint(
        policy(settings),
        memory_total_bytes=parts.machine.memory.total_bytes,
        state_dir=settings.agent.state_dir,
        reload_bytes=lambda: parts.supervisor.freed_bytes,
        changed=news.restrained,
    )
    known, pins = parts.catalogue, Pins(settings.agent.state_dir / "pinned")
    parts.provision = Provision(
        settings.models.serve,
        catalogue=known,
        sources=sources(settings, parts.root),
        changed=news.decided,
        images_bytes=bound_bytes(settings.images.pixels),
        apart=settings.privacy.share_prefixes == "client",
        loaded=lambda: parts.supervisor.loaded(),  # noqa: PLW0108 - made later
    )
    guides = Prover()
    parts.dispatcher = Dispatcher(
        models=models,
        store=parts.store,
        outbox=parts.outbox,
        supervisor=lambda: parts.supervisor,
        pace=parts.pace,
        guides=guides,
        apart=settings.privacy.share_prefixes == "client",
        lanes=parts.restraint.lanes,
    )
    parts.preparation = Preparation(
        models=models,
        store=parts.store,
        spool=parts.spool,
        decoder_process=DecoderProcess(pixels=settings.images.pixels),
        guides=guides,
        engine=lambda model: parts.supervisor.process(model),  # noqa: PLW0108 - made later
        limits=lambda model: parts.supervisor.status(model).limits,
        ready=parts.dispatcher.look,
        short=lambda: free_bytes(settings.agent.state_dir) < settings.queue.min_free_bytes,
        apart=settings.privacy.share_prefixes == "client",
    )
    parts.supervisor = Supervisor(
        [
            Served(
                serve.name,
                parts.provision.fallbacks(serve.name),
                serve.keep_alive_s,
                by_name=serve.openai is not None,
            )
            for serve in settings.models.serve
        ],
        listener=news.of_engines(),
        wake=parts.wake,
        unloads=lambda: parts.restraint.unloads,
        rest_share=lambda: parts.restraint.rest_share,
        busy=parts.dispatcher.busy,
        free_bytes=lambda: choose.free_bytes(memory.read(parts.root)),
        turn_s=settings.models.turn_s,
        pinned=pins.read(),
    )
    store, hub = models_store.BuildStore.of(settings), Hub.of(settings.models)
    parts.pulls = Pulls(
        known,
        bring=lambda variant, progress, stop: fetch(store, variant, hub=hub, progress=progress, stop=stop),
        decisions=parts.provision.decisions,
        changed=news.pulled,
    )
    parts.orders = Orders(settings.agent.id, models=models, supervisor=parts.supervisor, pulls=parts.pulls, pins=pins)


def _arrivals(parts: Parts, account: SelfReport, news: EventRouter) -> None:
    """Make what brings jobs: requests, those of pools, and messages that are watched."""
    settings, topics = parts.settings, parts.topics
    strangers = Strangers(time.monotonic)
    parts.intake = Intake(
        strangers=strangers,
        topics=topics,
        speech=Speech(topics),
        settings=settings.queue,
        images=settings.images,
        spool=parts.spool,
        requesters=settings.requesters,
        store=parts.store,
        outbox=parts.outbox,
        roster=parts.supervisor,
        pace=parts.pace,
        cancel_running=parts.dispatcher.cancel,
        free_bytes=lambda: free_bytes(settings.agent.state_dir),
        rejected=parts.counters.rejected,
        pool_full=lambda: parts.pools.full,
        proven=parts.preparation.proven,
    )
    parts.order_intake = OrderIntake(
        strangers=strangers,
        topics=topics,
        store=parts.store,
        allow=settings.requesters.admins,
        take=parts.orders.take,
        say=parts.outbox.say,
    )
    parts.pools = Pools(
        parts.access,
        names=settings.agent.pools,
        topics=topics,
        receive=parts.intake.receive,
        connected=lambda: parts.link.connected,
        healthy=account.welcoming,
        unfinished=lambda: parts.queue.asked.jobs,  # those go before what is watched
        lanes=account.lanes,
        wake=parts.wake,
        changed=parts.announcer.refresh,
    )
    parts.watcher = Watcher(
        parts.rules,
        store=parts.store,
        spool=parts.spool,
        admit=parts.intake.admit,
        ack=Receipt.acknowledge,
        now_s=time.monotonic,
        job_id=lambda: uuid.uuid4().hex,
    )
    wanted = watcher.subscriptions(parts.rules)
    parts.watch_link = _watch_link(parts, news, wanted) if wanted else None
    sessions = {settings.agent.id: news.receive}
    if wanted:
        sessions[f"{settings.agent.id}.{watcher.session(wanted)}"] = parts.watcher.receive
    parts.former = Former(
        parts.access,
        folder=settings.agent.state_dir,
        sessions=sessions,
        presence=topics.event("presence"),
        boot_id=parts.boot_id,
    )


def _watch_link(parts: Parts, news: EventRouter, wanted: tuple[Subscription, ...]) -> Link:
    return Link(
        replace(
            parts.access,
            client_id=f"{parts.settings.agent.id}.watch",
            session=session.derived(parts.access.session, watcher.session(wanted)),
            session_expiry_s=watcher.SESSION_S,
            receive_max=watcher.RECEIVE_MAX,
        ),
        subscriptions=wanted,
        callbacks=news.of_watch_link(),
        thread="mqtt-watch",
    )
