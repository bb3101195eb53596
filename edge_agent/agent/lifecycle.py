"""One agent's life: what is started and stopped in which order, and what the main thread does meanwhile.

What it is made of, and who tells whom what, stands in `build` and `events`.
"""

import contextlib
import os
import signal
import threading
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from edge_agent import __version__
from edge_agent.agent import build, from_settings
from edge_agent.agent.events import EventRouter
from edge_agent.agent.parts import Ground, Parts
from edge_agent.agent.self_report import SelfReport
from edge_agent.agent.waiting import awaited
from edge_agent.base.awake import awake_s, keep_time
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.base.outlet import drain
from edge_agent.jobs.database import LockedError
from edge_agent.jobs.job import Failure, Job
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.state_dir import Files, locked, open_queue
from edge_agent.service.notify import Notifier
from edge_agent.serving import former
from edge_agent.settings.load import Settings

if TYPE_CHECKING:
    from edge_agent.integrations.http import Routes

TICK_S = 1.0
"""How often the main thread looks after engines and feeds the watchdog when nothing wakes it."""
SETTLE_S = 5.0
"""How long the last results, states and the farewell may take to reach the broker."""
LOCK_S = 60.0
"""How long what has ended waits, while we stop, for another program to let go of the queue's lock."""
GRACE_S = 60.0
"""How long it is asked to wait beyond what is done next, while we start or stop."""

log = get_logger()


class Agent:
    """One agent, from settings to exit. `run` returns the exit status.

    `root` is where the machine's own files (proc, sys, …) are read from.

    Threads: `main` (signals, engines, pools, watchdog), `store`, `dispatcher`, `images`, `outbox`, `reporter`,
    `control` and one per caller, `pulse`, two of `outlet`, paho's (two while in pools), two per engine.
    """

    def __init__(self, settings: Settings, *, root: Path = Path("/")) -> None:
        self._settings = settings
        self._notifier = Notifier()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._crashed = threading.Event()
        self._files: Files
        self._status = 0
        self._stuck: tuple[str, ...] = ()
        self._root = root
        self._parts: Parts
        self._report: SelfReport

    def run(self) -> int:
        """Work until SIGTERM, SIGINT or SIGHUP; a second one hurries.

        Raises SettingsError when the settings cannot work here until somebody mends them; what may pass is waited for.
        """
        self._install_hooks()
        keep_time()
        with contextlib.ExitStack() as held:
            opened = awaited(lambda: self._begin(held), stopping=self._stopping, notifier=self._notifier)
            if opened is None:
                return 0
            self._build(*opened)
            try:
                self._start()
                self._attend_until(self._stopping)
                if not self._crashed.is_set():
                    self._stop()
            except Exception as error:  # noqa: BLE001 - or the other threads would keep the process, without this one
                self._note_crash("main", error)
            if self._crashed.is_set():
                return self._abandon()
        return self._status

    def _build(self, ground: Ground, queue: Queue, secret: str) -> None:
        self._parts = build.build(ground, queue, secret=secret)
        self._report = SelfReport(self._parts)
        EventRouter(self._parts, self._report).connect()

    # Order of start and stop

    def _start(self) -> None:
        """Start what is needed before what needs it: rows, who runs and tells them, who brings them."""
        parts = self._parts
        parts.store.start()
        self._clear_up()
        parts.outbox.start()
        parts.preparation.start()
        parts.dispatcher.start()
        for link in parts.links:
            link.start()
        parts.reporter.start(self._report)
        if parts.http is not None:
            parts.http.start(metric_routes(parts, self._report))
        parts.provision.start()
        parts.control.start(self._report.standing)
        self._notifier.ready()
        log.info("agent.started", agent=self._settings.agent.id, version=__version__, boot_id=parts.boot_id)

    def _stop(self) -> None:
        """Stop in the order of the flow: let jobs end, say so and good-bye, then close what they stood on."""
        parts = self._parts
        parts.main(GRACE_S)
        self._report.draining = True
        parts.pools.stop()
        self._notifier.stopping()
        log.info("agent.stopping", drain_s=self._settings.agent.drain_s)
        parts.provision.stop()
        parts.pulls.stop()
        parts.former.stop()
        if parts.watch_link:
            parts.watch_link.stop()
        parts.preparation.stop()
        parts.announcer.refresh(self._report)
        self._drain()
        parts.main.over()
        parts.control.stop()
        parts.dispatcher.stop()
        parts.reporter.stop()
        self._hand_back()
        self._await_rows()
        parts.announcer.farewell("stopped")
        if parts.link.connected:
            self._settle()
        if parts.http is not None:
            parts.http.stop()
        parts.link.stop()
        parts.outbox.stop()
        parts.supervisor.stop()
        parts.store.stop()
        log.info("agent.stopped")

    def _clear_up(self) -> None:
        """Deal with what an earlier life left: images nobody needs, jobs for models that are not served any more."""
        parts, models = self._parts, self._parts.models
        gone = EdgeAgentError(Code.UNKNOWN_MODEL, "model: this agent does not serve it any more")
        parts.store.do(lambda queue: parts.spool.sweep(*queue.images.needed()))
        parts.store.do(lambda queue: queue.overview.demand(models), parts.supervisor.demand)
        parts.store.do(
            lambda queue: queue.disown(models, Failure.of(gone)), lambda jobs: parts.outbox.hand_back(jobs, gone)
        )

    def _settle(self) -> None:
        if self._parts.outbox.settle(SETTLE_S):
            self._parts.home.settled()
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

        self._parts.store.do(act, lambda jobs: self._parts.outbox.hand_back(jobs, stopping))

    def _await_rows(self) -> None:
        """Let what ended be committed, and announced; another program's lock is waited for, a full disk is not."""
        written, begun_s = threading.Event(), awake_s()
        self._parts.store.do(lambda _queue: None, lambda _none: written.set())
        while not written.wait(TICK_S):
            locked_out = isinstance(self._parts.store.trouble, LockedError) and not self._hurry.is_set()
            if awake_s() - begun_s > (LOCK_S if locked_out else SETTLE_S):
                log.warning("agent.unwritten", next="what the disk did not take yet is run again after the next start")
                return
            self._notifier.alive()
            self._notifier.extend(GRACE_S)

    def _drain(self) -> None:
        """Let running jobs finish within their time, while their engines are still looked after."""
        end_s = awake_s() + self._settings.agent.drain_s
        while awake_s() < end_s and not self._hurry.is_set():
            if self._parts.dispatcher.drain(min(TICK_S, max(0.0, end_s - awake_s()))):
                return
            self._parts.main()
            self._parts.supervisor.attend()
            self._notifier.alive()
            self._notifier.extend(GRACE_S)

    def _abandon(self) -> int:
        """End at once after a crash: everything that matters is on disk, the service manager starts us again."""
        log.error("agent.crashed", next="the service manager starts the agent again; no accepted job is lost")
        drain()
        os._exit(1)

    # The main thread

    def _attend_until(self, event: threading.Event) -> None:
        while not event.is_set():
            self._parts.main()
            self._parts.supervisor.attend()
            self._parts.orders.attend()
            for link in self._parts.links:
                link.attend()
            self._parts.pools.attend(healthy=self._report.welcoming())
            self._parts.former.attend(connection=self._parts.link.connections if self._parts.link.connected else 0)
            self._look_for_files()
            self._feed()
            self._wake.wait(TICK_S)
            self._wake.clear()

    def _look_for_files(self) -> None:
        """Stop when our files are not in place any more: what is accepted then, the next start would not find."""
        if (gone := self._files.gone) and not self._stopping.is_set():
            log.error("state.gone", file=str(gone), next="the agent ends, and begins again with what is there then")
            self._status = 1
            self._stopping.set()

    def _feed(self) -> None:
        """Tell the service manager how we are; while a thread does not come back it hears no sign of life.

        Engines need no look here: the supervisor has just killed what was beyond its bound, and waits until it is gone.
        """
        stuck = self._report.stuck()
        if stuck and stuck != self._stuck:
            log.error("agent.stuck", threads=stuck, next="the service manager ends the agent and starts it again")
        self._stuck = stuck
        if not stuck:
            self._notifier.alive()
        self._notifier.status(f"stuck: {', '.join(stuck)}" if stuck else self._report.line())

    def _install_hooks(self) -> None:
        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self._stopping.is_set():
                self._hurry.set()
            self._stopping.set()
            self._wake.set()

        def on_crash(crash: threading.ExceptHookArgs) -> None:
            if crash.exc_value is not None:
                self._note_crash(crash.thread.name if crash.thread else "?", crash.exc_value)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, on_signal)
        threading.excepthook = on_crash

    def _note_crash(self, thread: str, error: BaseException) -> None:
        """Say where a thread ended that should not have, and have the agent end."""
        # Frames and type only: an exception's message may carry somebody's prompt.
        places = traceback.extract_tb(error.__traceback__)
        frames = [f"{frame.name} {frame.filename}:{frame.lineno}" for frame in places]
        self._crashed.set()  # before it is told, which nobody must rely on
        self._stopping.set()
        self._wake.set()
        log.error("thread.crashed", thread=thread, error=type(error).__name__, frames=frames)

    def _begin(self, held: contextlib.ExitStack) -> tuple[Ground, Queue, str]:
        """Return what the agent stands on, its queue, and what the ids of its connections are made with.

        The state folder is ours alone as long as it is `held`.
        """
        settings = self._settings
        ground = build.ground(settings, root=self._root, wake=self._wake)
        with contextlib.ExitStack() as unless_open:
            folder = unless_open.enter_context(locked(settings.agent.state_dir))
            ground.spool.open()
            secret = former.secret(folder)
            allowance = from_settings.allowance(settings)
            queue = open_queue(folder, age_step_s=settings.queue.age_step_s, allowance=allowance)
            self._files = Files(folder)
            held.push(unless_open.pop_all())
        return ground, queue, secret


def metric_routes(parts: Parts, report: SelfReport) -> "Routes":
    """Return what is answered to whoever asks for metrics."""
    from edge_agent.integrations import prometheus  # noqa: PLC0415 - costs memory, and few ask for it

    return prometheus.routes(
        prometheus.MetricSources(
            telemetry=lambda: parts.reporter.latest,
            counts=parts.counters.counts,
            condition=report.condition,
            connected=lambda: parts.link.connected,
            stuck=report.stuck,
        )
    )
