"""Makes every part of an agent, in one pass. Nothing is started here, and nothing else builds.

What a part knows is made before it and handed to it. What happens to a part is told by its signals, and `events` says
who hears which.
"""

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from edge_agent.agent.from_settings import access, policy
from edge_agent.agent.parts import Ground, Parts, Running, Told
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.orders import LOCAL, Orders
from edge_agent.control.server import ControlServer
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.prover import Prover
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.health.counters import Counters
from edge_agent.health.restraint import Restraint
from edge_agent.health.snapshot import Snapshots, free_bytes
from edge_agent.images.decoder_process import DecoderProcess, bound_bytes
from edge_agent.images.spool import Spool
from edge_agent.integrations.homeassistant import HomeAssistant, WatchAnswers, config_topic, status_topic
from edge_agent.jobs.ids import job_id
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
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.topics import KEPT, Topics
from edge_agent.running.dispatcher import Dispatcher
from edge_agent.running.occupancy import Occupancy
from edge_agent.running.preparation import Preparation
from edge_agent.serving.former import Former
from edge_agent.serving.intake import Intake
from edge_agent.serving.order_intake import SUBJECT, OrderIntake
from edge_agent.serving.outbox import Outbox
from edge_agent.serving.pool import PoolRoom, Pools
from edge_agent.serving.presence import TAG_CHARACTERS, Announcer
from edge_agent.serving.reporter import Reporter
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import Settings
from edge_agent.watch import rules, watcher
from edge_agent.watch.watcher import Watcher
from hardware import memory
from hardware.gauges import gauges
from hardware.probe import probe

if TYPE_CHECKING:
    from edge_agent.integrations.http import HttpServer


def ground(settings: Settings, *, root: Path, wake: Event) -> Ground:
    """Return the parts that need no queue.

    Raises SettingsError when the settings cannot be used here, PassingError when that may pass by itself.
    """
    topics = Topics(settings.mqtt.root, settings.agent.id)
    return Ground(
        settings=settings,
        root=root,
        wake=wake,
        main=Heartbeat("main"),
        boot_id=uuid.uuid4().hex,
        machine=probe(root),
        topics=topics,
        rules=rules.read(settings, topics),
        access=access(settings),
        catalogue=catalogue.read(settings.models.catalogue),
        pace=Pace(),
        counters=Counters([serve.name for serve in settings.models.serve]),
        spool=Spool(
            settings.agent.state_dir / "images",
            quota_bytes=settings.images.quota_bytes,
            requester_quota_bytes=settings.images.requester_quota_bytes,
            image_bytes=settings.images.image_bytes,
        ),
        engines=Engines({serve.name: serve.openai is not None for serve in settings.models.serve}),
    )


def build(ground: Ground, queue: Queue, *, secret: str) -> Parts:
    """Return all parts. `secret` is what the ids of the agent's connections are made with."""
    own = replace(ground, access=replace(ground.access, session=session.derived(secret, "main")))
    return _whole(_running(_told(own, queue)))


def _of(parts: Ground) -> dict[str, Any]:
    """Return parts by name, to be handed on."""
    return {field.name: getattr(parts, field.name) for field in fields(parts)}


def _told(ground: Ground, queue: Queue) -> Told:
    settings, topics = ground.settings, ground.topics
    store = Store(
        queue,
        keep_finished_s=settings.queue.keep_finished_s,
        keep_finished_jobs=settings.queue.keep_finished_jobs,
        sync=ground.spool.sync,
    )
    announcer = Announcer(
        topics, boot_id=ground.boot_id, tag=session.derived(ground.access.session, "tag")[:TAG_CHARACTERS]
    )
    link = Link(ground.access, subscriptions=_subscriptions(settings, topics), will=announcer.will)
    outbox = Outbox(
        link=link,
        store=store,
        speech=Speech(topics),
        pace=ground.pace,
        keep_text=settings.privacy.keep_text,
        engines=ground.engines,
        chance=random.random,
    )
    return Told(
        **_of(ground),
        queue=queue,
        store=store,
        announcer=announcer,
        home=_home(ground),
        link=link,
        outbox=outbox,
    )


def _subscriptions(settings: Settings, topics: Topics) -> tuple[Subscription, ...]:
    """Return what the agent's own connection is to hear."""
    return (
        Subscription(topics.commands),
        Subscription(topics.admin("+", SUBJECT)),
        *(Subscription(each, qos=0, needed=False) for each in topics.near_misses),
        Subscription(topics.event("presence"), retained="always"),
        # Rights that agents did not need before: on old ones they do without.
        *(Subscription(topics.event(leaf), retained="always", needed=False) for leaf in KEPT),
        *(Subscription(topics.pool_cancels(name)) for name in settings.agent.pools),
        *_of_home(settings),
    )


def _of_home(settings: Settings) -> tuple[Subscription, ...]:
    """Return what there is to hear of Home Assistant, and of what it was told."""
    if not settings.homeassistant.enabled:
        return ()
    prefix = settings.homeassistant.prefix
    announced = Subscription(config_topic(prefix, settings.agent.id), retained="always", needed=False)
    return (Subscription(status_topic(prefix)), announced)


def _home(ground: Ground) -> HomeAssistant:
    settings = ground.settings
    return HomeAssistant(
        ground.topics,
        prefix=settings.homeassistant.prefix if settings.homeassistant.enabled else None,
        model=ground.machine.board.model,
        period_s=settings.telemetry.period_s,
        watches=[
            WatchAnswers(rule.section.name, rules.shape(rule.answer, topic), rule.section.answer_format == "json")
            for rule in ground.rules
            for topic in rule.section.topics[:1]
        ],
        mark=settings.agent.state_dir / "homeassistant",
    )


def _running(told: Told) -> Running:
    settings, engines = told.settings, told.engines
    apart = settings.privacy.share_prefixes == "client"
    restraint = Restraint(
        policy(settings),
        memory_total_bytes=told.machine.memory.total_bytes,
        state_dir=settings.agent.state_dir,
        engines=engines,
    )
    provision = Provision(
        settings.models.serve,
        catalogue=told.catalogue,
        sources=sources(settings, told.root),
        engines=engines,
        images_bytes=bound_bytes(settings.images.pixels),
        apart=apart,
    )
    occupancy = {model: Occupancy() for model in told.models}
    pins = Pins(settings.agent.state_dir / "pinned")
    supervisor = Supervisor(
        [
            Served(serve.name, provision.fallbacks(serve.name), serve.keep_alive_s, by_name=serve.openai is not None)
            for serve in settings.models.serve
        ],
        engines=engines,
        wake=told.wake,
        strain=restraint,
        work=occupancy,
        free_bytes=lambda: choose.free_bytes(memory.read(told.root)),
        turn_s=settings.models.turn_s,
        pinned=pins.read(),
    )
    guides = Prover()
    pulls = _pulls(told, provision)
    return Running(
        **_of(told),
        restraint=restraint,
        provision=provision,
        supervisor=supervisor,
        dispatcher=Dispatcher(
            occupancy=occupancy,
            store=told.store,
            outbox=told.outbox,
            engines=engines,
            supervisor=supervisor,
            restraint=restraint,
            pace=told.pace,
            guides=guides,
            apart=apart,
        ),
        preparation=Preparation(
            models=told.models,
            store=told.store,
            spool=told.spool,
            decoder_process=DecoderProcess(pixels=settings.images.pixels),
            guides=guides,
            engines=engines,
            short=lambda: free_bytes(settings.agent.state_dir) < settings.queue.min_free_bytes,
            apart=apart,
        ),
        pulls=pulls,
        orders=Orders(
            settings.agent.id, models=told.models, engines=engines, supervisor=supervisor, pulls=pulls, pins=pins
        ),
    )


def _pulls(ground: Ground, provision: Provision) -> Pulls:
    store, hub = models_store.BuildStore.of(ground.settings), Hub.of(ground.settings.models)
    return Pulls(
        ground.catalogue,
        bring=lambda variant, progress, stop: fetch(store, variant, hub=hub, progress=progress, stop=stop),
        decisions=provision.decisions,
    )


def _whole(running: Running) -> Parts:
    settings, topics = running.settings, running.topics
    room = PoolRoom(queue=running.queue, engines=running.engines, restraint=running.restraint)
    strangers = Strangers(time.monotonic)
    intake = _intake(running, room, strangers)
    watched = Watcher(
        running.rules,
        store=running.store,
        spool=running.spool,
        admit=intake.admit,
        ack=Receipt.acknowledge,
        now_s=time.monotonic,
        job_id=lambda: uuid.uuid4().hex,
    )
    job_admin = JobAdmin(speech=Speech(topics), resolve=running.engines.resolve, new_id=job_id)
    return Parts(
        **_of(running),
        room=room,
        intake=intake,
        order_intake=OrderIntake(
            strangers=strangers,
            topics=topics,
            store=running.store,
            allow=settings.requesters.admins,
            take=running.orders.take,
        ),
        pools=Pools(
            running.access, names=settings.agent.pools, topics=topics, link=running.link, room=room, wake=running.wake
        ),
        watcher=watched,
        watch_link=_watch_link(running),
        former=_former(running, watched),
        reporter=_reporter(running, watched),
        job_admin=job_admin,
        control=ControlServer(
            settings.agent.state_dir,
            store=running.store,
            desk=job_admin,
            order=partial(running.orders.take, LOCAL),
        ),
        http=_http(settings),
    )


def _intake(running: Running, room: PoolRoom, strangers: Strangers) -> Intake:
    settings = running.settings
    return Intake(
        strangers=strangers,
        topics=running.topics,
        speech=Speech(running.topics),
        settings=settings.queue,
        images=settings.images,
        spool=running.spool,
        requesters=settings.requesters,
        store=running.store,
        outbox=running.outbox,
        engines=running.engines,
        pace=running.pace,
        free_bytes=lambda: free_bytes(settings.agent.state_dir),
        pool_full=room.full,
        proven=running.preparation.proven,
    )


def _watch_link(running: Running) -> Link | None:
    """Return the connection on which messages are watched; None when no rule watches any."""
    wanted = watcher.subscriptions(running.rules)
    if not wanted:
        return None
    return Link(
        replace(
            running.access,
            client_id=f"{running.settings.agent.id}.watch",
            session=session.derived(running.access.session, watcher.session(wanted)),
            session_expiry_s=watcher.SESSION_S,
            receive_max=watcher.RECEIVE_MAX,
        ),
        subscriptions=wanted,
        thread="mqtt-watch",
    )


def _former(running: Running, watched: Watcher) -> Former:
    agent, wanted = running.settings.agent, watcher.subscriptions(running.rules)
    sessions: dict[str, Callable[[Inbound, Receipt], None]] = {agent.id: running.link.on_received}
    if wanted:
        sessions[f"{agent.id}.{watcher.session(wanted)}"] = watched.receive
    return Former(
        running.access,
        folder=agent.state_dir,
        sessions=sessions,
        presence=running.topics.event("presence"),
        boot_id=running.boot_id,
    )


def _reporter(running: Running, watched: Watcher) -> Reporter:
    settings, counters = running.settings, running.counters
    return Reporter(
        topics=running.topics,
        boot_id=running.boot_id,
        period_s=settings.telemetry.period_s,
        snapshots=Snapshots(
            running.root,
            memory=running.machine.memory,
            state_dir=settings.agent.state_dir,
            generated=lambda: counters.generated,
            gpus=gauges(running.root, running.machine.accelerators),
        ),
        counters=counters,
        store=running.store,
        outbox=running.outbox,
        engines=running.engines,
        link=running.link,
        restraint=running.restraint,
        watches=watched.readings,
    )


def _http(settings: Settings) -> "HttpServer | None":
    if settings.prometheus.port is None:
        return None
    from edge_agent.integrations.http import HttpServer  # noqa: PLC0415 - costs memory, and few ask for it

    return HttpServer(settings.prometheus.host, settings.prometheus.port)
