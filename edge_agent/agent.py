"""The composition root: builds everything, starts it in order, stops it in order. Nothing else builds anything."""

import os
import random
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edge_agent import __version__
from edge_agent.control.desk import Desk
from edge_agent.control.messages import Standing
from edge_agent.control.server import ControlServer
from edge_agent.dispatcher import IDLE_S, Dispatcher
from edge_agent.engine.messages import Event, Ready
from edge_agent.engine.supervisor import EngineStatus, Listener, Served, Supervisor
from edge_agent.errors import Code, EdgeAgentError, SettingsError
from edge_agent.health.birth import birth_certificate, decision_report
from edge_agent.health.condition import condition
from edge_agent.health.governor import Policy
from edge_agent.health.reporter import Reporter
from edge_agent.health.restraint import Restraint
from edge_agent.health.snapshot import Snapshots, free_bytes
from edge_agent.health.systemd import Notifier
from edge_agent.health.tally import Counts, Tally
from edge_agent.health.window import AgentState, Window
from edge_agent.integrations.homeassistant import HomeAssistant, WatchAnswers
from edge_agent.jobs import rules
from edge_agent.jobs.darkroom import Darkroom
from edge_agent.jobs.job import Failure, Job
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue, StorageError
from edge_agent.jobs.spool import Spool
from edge_agent.jobs.store import Operation, Store
from edge_agent.log import get_logger
from edge_agent.models import catalogue
from edge_agent.models.provision import Provision, sources
from edge_agent.mqtt import watcher
from edge_agent.mqtt.access import Access, CredentialError
from edge_agent.mqtt.client import job_id
from edge_agent.mqtt.intake import Intake
from edge_agent.mqtt.link import Callbacks, Link, Receipt, Subscription
from edge_agent.mqtt.outbox import Outbox
from edge_agent.mqtt.payloads import DecisionReport, EngineReading, Info
from edge_agent.mqtt.pool import Pools
from edge_agent.mqtt.presence import Announcer, Condition
from edge_agent.mqtt.topics import Topics
from edge_agent.mqtt.watcher import Watcher
from edge_agent.mqtt.wire import Inbound, Publication, Speech
from edge_agent.preparation import Preparation
from edge_agent.settings import Settings
from edge_agent.state_dir import locked, open_queue
from hardware.probe import probe

if TYPE_CHECKING:
    from edge_agent.integrations.http import HttpServer

TICK_S = 1.0
"""How often the main thread looks after engines and feeds the watchdog when nothing wakes it."""
STUCK_S = IDLE_S + 60.0
"""A thread that shows no sign of life for so long is stuck; the watchdog is not fed any more."""
SETTLE_S = 5.0
"""How long the last results, states and the farewell may take to reach the broker."""
STORAGE_RETRY_S = 5.0

log = get_logger()


class Agent:
    """One agent, from settings to exit. `run` returns the exit status.

    `root` is where the machine's own files (proc, sys, …) are read from.

    Threads: `main` (signals, engines, pools, watchdog), `store`, `dispatcher`, `images`, `outbox`, `reporter`,
    `control`, `status`, paho's (two while in pools), two per engine.
    """

    def __init__(self, settings: Settings, *, root: Path = Path("/")) -> None:
        self._settings = settings
        self._root = root
        self._notifier = Notifier()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._crashed = threading.Event()
        self._draining = False
        self._deaf: tuple[str, ...] = ()
        self._unwatched: tuple[str, ...] = ()
        self._boot_id = uuid.uuid4().hex
        self._machine = probe(root)
        self._topics = Topics(settings.mqtt.root, settings.agent.id)
        self._pace = Pace()
        self._tally = Tally([serve.name for serve in settings.models.serve])
        self._spool = Spool(
            settings.agent.state_dir / "images",
            quota_bytes=settings.images.quota_bytes,
            image_bytes=settings.images.image_bytes,
        )
        self._rules = rules.read(settings, self._topics)

    def run(self) -> int:
        """Work until SIGTERM or SIGINT; a second one hurries. Raises SettingsError when they cannot work here."""
        self._install_hooks()
        with locked(self._settings.agent.state_dir) as state_dir:
            queue = self._open_queue(state_dir)
            if queue is None:
                return 0
            self._build(queue, state_dir)
            self._start()
            self._attend_until(self._stopping)
            if self._crashed.is_set():
                return self._abandon()
            self._stop()
        return 0

    # Building

    def _build(self, queue: Queue, state_dir: Path) -> None:
        settings, topics = self._settings, self._topics
        speech = Speech(topics)
        self._store = Store(
            queue,
            tell=lambda changes: self._tell(queue, changes),
            keep_finished_s=settings.queue.keep_finished_s,
            keep_finished_jobs=settings.queue.keep_finished_jobs,
        )
        self._link = Link(
            access(settings),
            subscriptions=(
                Subscription(topics.commands),
                Subscription(topics.event("presence"), retained="always"),
                *(Subscription(topics.pool_cancels(name)) for name in settings.agent.pools),
                *((Subscription(f"{settings.homeassistant.prefix}/status"),) if settings.homeassistant.enabled else ()),
            ),
            callbacks=Callbacks(
                receive=self._receive,
                up=self._up,
                down=self._down,
                answered=lambda mid, reason: self._outbox.answered(mid, reason),  # noqa: PLW0108 - built below
                subscribed=self._subscribed,
                will=lambda conn_seq: self._announcer.will(conn_seq),  # noqa: PLW0108 - built below
            ),
        )
        self._outbox = Outbox(
            link=self._link,
            store=self._store,
            speech=speech,
            pace=self._pace,
            keep_text=settings.privacy.keep_text,
            chance=random.random,
        )
        self._home = HomeAssistant(
            topics,
            prefix=settings.homeassistant.prefix if settings.homeassistant.enabled else None,
            model=self._machine.board.model,
            period_s=settings.telemetry.period_s,
            watches=[
                WatchAnswers(rule.section.name, rules.shape(rule.answer, topic), rule.section.answer_format == "json")
                for rule in self._rules
                for topic in rule.section.topics[:1]
            ],
            mark=state_dir / "homeassistant",
            say=self._outbox.say,
        )
        self._restraint = Restraint(
            policy(settings),
            memory_total_bytes=self._machine.memory.total_bytes,
            state_dir=state_dir,
            reload_bytes=lambda: self._supervisor.freed_bytes,
            changed=self._restrained,
        )
        self._dispatcher = Dispatcher(
            models=[serve.name for serve in settings.models.serve],
            store=self._store,
            outbox=self._outbox,
            supervisor=lambda: self._supervisor,
            pace=self._pace,
            lanes=self._restraint.lanes,
        )
        self._preparation = Preparation(
            models=[serve.name for serve in settings.models.serve],
            store=self._store,
            spool=self._spool,
            darkroom=Darkroom(pixels=settings.images.pixels),
            limits=lambda model: self._supervisor.status(model).limits,
            ready=self._dispatcher.look,
        )
        self._provision = Provision(
            settings.models.serve,
            catalogue=catalogue.read(settings.models.catalogue),
            sources=sources(settings, self._root),
            changed=self._decided,
        )
        self._supervisor = Supervisor(
            [Served(serve.name, partial(self._provision.prepare, serve)) for serve in settings.models.serve],
            listener=Listener(
                event=self._heard, up=self._engine_up, lost=self._engine_lost, unloaded=self._dispatcher.unloaded
            ),
            wake=self._wake.set,
            unloads=lambda: self._restraint.unloads,
            rest_share=lambda: self._restraint.rest_share,
        )
        self._announcer = Announcer(
            topics,
            boot_id=self._boot_id,
            condition=self._condition,
            describe=self._describe,
            decided=self._decisions,
            say=self._outbox.say,
        )
        self._intake = Intake(
            topics=topics,
            speech=speech,
            settings=settings.queue,
            images=settings.images,
            spool=self._spool,
            requesters=settings.requesters,
            store=self._store,
            outbox=self._outbox,
            roster=self._supervisor,
            pace=self._pace,
            cancel_running=self._dispatcher.cancel,
            free_bytes=lambda: free_bytes(state_dir),
            rejected=self._tally.rejected,
            pool_full=lambda: self._pools.full,
        )
        self._pools = Pools(
            access(settings),
            names=settings.agent.pools,
            topics=topics,
            receive=self._intake.receive,
            connected=lambda: self._link.connected,
            healthy=self._welcoming,
            unfinished=lambda: queue.backlog.jobs,
            lanes=self._lanes,
            wake=self._wake.set,
        )
        self._watcher = Watcher(
            self._rules,
            store=self._store,
            spool=self._spool,
            admit=self._intake.admit,
            ack=lambda receipt: self._watch_link.ack(receipt) if self._watch_link else None,
            now_s=time.monotonic,
            job_id=lambda: uuid.uuid4().hex,
        )
        self._watch_link = self._build_watch_link()
        self._reporter = Reporter(
            topics=topics,
            boot_id=self._boot_id,
            period_s=settings.telemetry.period_s,
            snapshots=Snapshots(
                self._root, memory=self._machine.memory, state_dir=state_dir, generated=lambda: self._tally.generated
            ),
            tally=self._tally,
            store=self._store,
            outbox=self._outbox,
            engines=self._supervisor.statuses,
            reading=self._reading,
            condition=self._condition,
            connections=lambda: self._link.connections,
            look=self._restraint.look,
            restraint=lambda: self._restraint.level,
            refresh=self._announcer.refresh,
            watches=self._watcher.readings,
            say=self._report,
        )
        self._window = Window(state_dir, state=self._state)
        self._control = ControlServer(
            state_dir,
            store=self._store,
            desk=Desk(
                speech=speech,
                cancel_running=self._dispatcher.cancel,
                resolve=self._supervisor.resolve,
                new_id=job_id,
            ),
            state=self._standing,
        )
        self._http = self._build_http()

    def _build_http(self) -> "HttpServer | None":
        asked = self._settings.prometheus
        if asked.port is None:
            return None
        from edge_agent.integrations import prometheus  # noqa: PLC0415 - costs memory, and few ask for it

        return prometheus.server(
            asked.host,
            asked.port,
            prometheus.Sources(
                telemetry=lambda: self._reporter.latest,
                counts=self._tally.counts,
                condition=self._condition,
                connected=lambda: self._link.connected,
                alive=self._alive,
            ),
        )

    def _build_watch_link(self) -> Link | None:
        if not self._rules:
            return None
        wanted = watcher.subscriptions(self._rules)
        return Link(
            replace(
                access(self._settings),
                client_id=watcher.session(self._settings.agent.id, wanted),
                session_expiry_s=watcher.SESSION_S,
                receive_max=watcher.RECEIVE_MAX,
            ),
            subscriptions=wanted,
            callbacks=Callbacks(
                receive=self._watcher.receive,
                subscribed=self._watch_subscribed,
                down=lambda _reason: self._announcer.refresh(),
            ),
        )

    # Order of start and stop

    def _start(self) -> None:
        """Start what is needed before what needs it: rows, who runs and tells them, who brings them."""
        self._store.start()
        self._store.do(lambda queue: self._spool.sweep(*queue.images()))
        models = [serve.name for serve in self._settings.models.serve]
        gone = EdgeAgentError(Code.UNKNOWN_MODEL, "model: this agent does not serve it any more")
        self._store.do(
            lambda queue: queue.disown(models, Failure.of(gone)), lambda jobs: self._outbox.hand_back(jobs, gone)
        )
        self._outbox.start()
        self._preparation.start()
        self._dispatcher.start()
        self._link.start()
        if self._watch_link:
            self._watch_link.start()
        self._reporter.start()
        self._window.start()
        if self._http is not None:
            self._http.start()
        self._provision.start()
        self._control.start()
        self._notifier.ready()
        log.info("agent.started", agent=self._settings.agent.id, version=__version__, boot_id=self._boot_id)

    def _stop(self) -> None:
        """Stop in the order of the flow: let jobs end, say so and good-bye, then close what they stood on."""
        self._draining = True
        self._control.stop()
        self._pools.stop()
        self._notifier.stopping()
        log.info("agent.stopping", drain_s=self._settings.agent.drain_s)
        self._provision.stop()
        if self._watch_link:
            self._watch_link.stop()
        self._preparation.stop()
        self._announcer.refresh()
        self._drain()
        self._dispatcher.stop()
        self._reporter.stop()
        self._hand_back()
        self._await_rows()
        self._announcer.farewell("stopped")
        if self._link.connected:
            self._settle()
        self._window.stop()
        if self._http is not None:
            self._http.stop()
        self._link.stop()
        self._outbox.stop()
        self._supervisor.stop()
        self._store.stop()
        log.info("agent.stopped")

    def _settle(self) -> None:
        if self._outbox.settle(SETTLE_S):
            self._home.settled()
        else:
            log.warning(
                "agent.unsettled",
                next="results that did not reach the broker are published after the next start",
            )

    def _hand_back(self) -> None:
        """Let other agents have the jobs of pools that did not end here."""
        stopping = EdgeAgentError(Code.SHUTTING_DOWN, "this agent of the pool is stopping; send the job again")

        def act(queue: Queue) -> list[Job]:
            return [job for job in queue.pooled() if queue.hand_back(job)]

        self._store.do(act, lambda jobs: self._outbox.hand_back(jobs, stopping))

    def _await_rows(self) -> None:
        """Let what ended be committed, and announced; a full disk is not waited for."""
        try:
            self._store.ask(lambda _queue: None, timeout_s=SETTLE_S)
        except TimeoutError:
            log.warning("agent.unwritten", next="what the disk did not take yet is run again after the next start")

    def _drain(self) -> None:
        """Let running jobs finish within their time, while their engines are still looked after."""
        end_s = time.monotonic() + self._settings.agent.drain_s
        while time.monotonic() < end_s and not self._hurry.is_set():
            if self._dispatcher.drain(min(TICK_S, max(0.0, end_s - time.monotonic()))):
                return
            self._supervisor.attend()
            self._notifier.alive()

    def _abandon(self) -> int:
        """End at once after a crash: everything that matters is on disk, the service manager starts us again."""
        log.error("agent.crashed", next="the service manager starts the agent again; no accepted job is lost")
        os._exit(1)

    # The main thread

    def _attend_until(self, event: threading.Event) -> None:
        while not event.is_set():
            self._supervisor.attend()
            self._link.attend()
            if self._watch_link:
                self._watch_link.attend()
            self._pools.attend()
            self._feed()
            self._wake.wait(TICK_S)
            self._wake.clear()

    def _alive(self) -> bool:
        """Return whether the threads that say so show signs of life."""
        return time.monotonic() - min(self._dispatcher.beat_s, self._store.beat_s) < STUCK_S

    def _feed(self) -> None:
        if self._alive():
            self._notifier.alive()
        condition = self._condition()
        running = sum(self._dispatcher.running(serve.name) for serve in self._settings.models.serve)
        where = "connected" if self._link.connected else f"no broker ({self._link.trouble or 'not reached yet'})"
        self._notifier.status(
            f"{condition.health}, {where}, {running} running" + "".join(f"; {r}" for r in condition.reasons)
        )

    def _install_hooks(self) -> None:
        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self._stopping.is_set():
                self._hurry.set()
            self._stopping.set()
            self._wake.set()

        def on_crash(crash: threading.ExceptHookArgs) -> None:
            # Frames and type only: an exception's message may carry somebody's prompt.
            frames = [
                f"{frame.name} {frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(crash.exc_traceback)
            ]
            thread = crash.thread.name if crash.thread else "?"
            log.error("thread.crashed", thread=thread, error=crash.exc_type.__name__, frames=frames)
            self._crashed.set()
            self._stopping.set()
            self._wake.set()

        signal.signal(signal.SIGTERM, on_signal)
        signal.signal(signal.SIGINT, on_signal)
        threading.excepthook = on_crash

    def _open_queue(self, folder: Path) -> Queue | None:
        """Open the queue and the folder of images, waiting for room on the disk; None when told to stop meanwhile."""
        while not self._stopping.is_set():
            try:
                self._spool.open()
                return open_queue(folder, age_step_s=self._settings.queue.age_step_s)
            except (StorageError, EdgeAgentError) as error:
                log.error("queue.unwritable", reason=str(error), next="free disk space or mend the folder's rights")
                self._notifier.status(f"waits: the queue cannot be written ({error})")
                self._notifier.alive()
                self._stopping.wait(STORAGE_RETRY_S)
        return None

    # What parts of the agent tell each other

    def _tell(self, queue: Queue, changes: Sequence[Job]) -> None:
        self._tally.changed(changes)
        self._outbox.announce(queue, changes)
        self._preparation.changed(changes)
        self._watcher.told(changes)
        self._dispatcher.look()
        self._pools.look()

    def _report(self, publication: Publication) -> None:
        """Say how we are while somebody hears it: a report of an hour ago is no news, and must push no state out."""
        if self._link.connected:
            self._outbox.say(publication)

    def _receive(self, inbound: Inbound, receipt: Receipt) -> None:
        acknowledge = partial(self._link.ack, receipt)
        if inbound.topic in (self._topics.event("presence"), self._home.status_topic):
            if inbound.topic == self._home.status_topic:
                self._home.heard(inbound.payload)
            else:
                self._announcer.seen(inbound)
            # Nothing to store, but acknowledged in its turn: MQTT 5 wants the order of arrival.
            self._store.put(
                Operation(lambda _queue: None, lambda _none: acknowledge(), refuse=lambda _error: acknowledge())
            )
        else:
            self._intake.receive(inbound, acknowledge)

    def _up(self, conn_seq: int) -> None:
        self._pools.reset()
        self._announcer.birth(conn_seq)
        self._home.announce()
        self._outbox.wake()

    def _down(self, reason: str) -> None:
        self._wake.set()
        if reason == "duplicate_agent":
            self._announcer.note_duplicate()

    def _subscribed(self, refused: tuple[str, ...]) -> None:
        self._deaf = refused
        self._announcer.refresh()

    def _watch_subscribed(self, refused: tuple[str, ...]) -> None:
        self._unwatched = refused
        self._announcer.refresh()

    def _decided(self) -> None:
        """A build was chosen, fetched, or is missing: the main thread looks at once, the fleet is told."""
        self._supervisor.hurry()
        self._announcer.refresh()

    def _restrained(self) -> None:
        """The agent holds back more, or less: everybody whom it concerns looks anew, the fleet is told."""
        self._wake.set()
        self._dispatcher.look()
        self._announcer.refresh()

    def _heard(self, model: str, event: Event) -> None:
        self._tally.heard(model, event)
        self._dispatcher.said(model, event)

    def _engine_up(self, model: str, ready: Ready) -> None:
        self._dispatcher.up(model, ready)
        self._preparation.look()
        self._announcer.refresh()

    def _engine_lost(self, model: str, failure: Failure) -> None:
        self._tally.lost(model)
        self._dispatcher.lost(model, failure)
        self._announcer.refresh()

    def _condition(self, *, strained: tuple[str, ...] | None = None) -> Condition:
        return condition(
            engines=self._supervisor.statuses(),
            draining=self._draining,
            disk_full=self._store.disk_full,
            duplicate=self._announcer.duplicate,
            deaf=(*self._deaf, *self._unwatched, *self._pools.refused),
            blind=bool(self._link.connected and self._watch_link and self._watch_link.trouble),
            strained=self._restraint.reasons if strained is None else strained,
        )

    def _state(self) -> AgentState:
        condition = self._condition()
        return AgentState(
            agent=self._settings.agent.id,
            version=__version__,
            pid=os.getpid(),
            health=condition.health,
            reasons=condition.reasons,
            connected=self._link.connected,
            telemetry=self._reporter.latest,
        )

    def _standing(self) -> Standing:
        condition, trouble = self._condition(), self._link.trouble
        return Standing(
            agent=self._settings.agent.id,
            version=__version__,
            pid=os.getpid(),
            boot_id=self._boot_id,
            health=condition.health,
            reasons=condition.reasons,
            connected=self._link.connected,
            trouble=None if trouble is None else str(trouble),
        )

    def _lanes(self) -> int:
        """Return how many jobs the engines that are there run at once."""
        limits = (engine.limits for engine in self._supervisor.statuses())
        return sum(self._restraint.lanes(each.parallel) for each in limits if each)

    def _welcoming(self) -> bool:
        """Return whether jobs may come that others could do as well: well, but for what is held back."""
        return self._restraint.in_pools and self._condition(strained=()).health == "ready"

    def _reading(self, engine: EngineStatus, counts: Counts) -> EngineReading:
        process = self._supervisor.process(engine.model)
        counted = counts.models.get(engine.model)
        share = counted.cached_share if counted else None
        return EngineReading(
            model=engine.model,
            state=engine.phase,
            device=engine.device or None,
            running=self._dispatcher.running(engine.model),
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

    def _describe(self, conn_seq: int) -> Info:
        engines = self._supervisor.statuses()
        return birth_certificate(
            self._settings, self._machine, engines, self._condition(), boot_id=self._boot_id, conn_seq=conn_seq
        )

    def _decisions(self) -> DecisionReport:
        return decision_report(
            self._settings.models.serve,
            self._provision.decisions(),
            agent=self._settings.agent.id,
            boot_id=self._boot_id,
        )


def access(settings: Settings) -> Access:
    """Return how an agent reaches its broker. Raises SettingsError when a file it needs for that cannot be used."""
    found = Access.of(settings.mqtt, client_id=settings.agent.id, receive_bytes_max=settings.images.packet_bytes)
    try:
        found.check()
    except CredentialError as error:
        raise SettingsError(str(error)) from None
    return found


def policy(settings: Settings) -> Policy | None:
    """Return when the agent holds back; None: never."""
    asked = settings.governor
    if not asked.enabled:
        return None
    return Policy(
        heat_margin_c=asked.heat_margin_c,
        memory_stall_percent=asked.memory_stall_percent,
        battery_percent=asked.battery_percent,
        disk_free_bytes=settings.queue.min_free_bytes,
        step_s=asked.step_s,
    )


def _rounded(per_second: float | None) -> float | None:
    return per_second if per_second is None else round(per_second, 1)
