"""What administrators want done with models, each order from its acceptance to its end.

Whoever gives an order again, by its id, hears how far it is: that makes repeats harmless, and asking after one easy.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.hosting.supervisor import Supervisor
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure
from edge_agent.models.fetch import PullProgress
from edge_agent.models.pins import Pins
from edge_agent.models.pulls import Pulls
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus

OPEN_MAX = 16
"""Orders under way; more are refused."""
REMEMBERED_MAX = 256
"""Orders that are known by their id, ended ones included; the oldest ended are forgotten."""
LOCAL = "local:"
"""Who orders on the device itself; no name in a topic has a colon."""
PROGRESS_S = 2.0
"""Progress is told no more often."""
WAIT_MOST_S = 1800.0
"""An order that waits so long is given up: a load for room, its build or a machine that is well; an unload for jobs."""

Report = OrderStatus | OrderResult
Tell = Callable[[Report], None]

log = get_logger()


@dataclass(frozen=True, slots=True)
class OrderStep:
    """How far an order is: the reason it is not done yet, or that it is, or why it never will be."""

    reason: str = ""
    done: bool = False
    failure: Failure | None = None


def follow(verb: str, engine: EngineStatus, *, age_s: float) -> OrderStep:
    """Return how far an order is that concerns an engine (pure), given for how long it has been under way."""
    there = engine.phase in (Phase.READY, Phase.STARTING)
    if verb == "unpin" or (verb == "unload" and not there):
        return OrderStep(done=True)
    if verb == "unload":
        return _leaving(engine, age_s)
    if engine.phase is Phase.READY:
        return OrderStep(done=True)
    if engine.phase is Phase.FAILED:
        return OrderStep(failure=Failure.because(engine.code or Code.INTERNAL, engine.reason))
    if age_s > WAIT_MOST_S:
        return OrderStep(
            failure=Failure.because(Code.TIMEOUT, f"not loaded after {WAIT_MOST_S:.0f} s: {engine.reason}")
        )
    return OrderStep(engine.reason)


def _leaving(engine: EngineStatus, age_s: float) -> OrderStep:
    if engine.pinned:
        return OrderStep(failure=Failure.because(Code.UNSUPPORTED, "model: was pinned meanwhile; unpin it first"))
    if age_s > WAIT_MOST_S:
        sentence = f"not unloaded after {WAIT_MOST_S:.0f} s, its jobs go on; cancel them, or order it again"
        return OrderStep(failure=Failure.because(Code.TIMEOUT, sentence))
    return OrderStep(engine.reason or "ends what runs")


@dataclass(slots=True)
class _OpenOrder:
    """An order and what was told of it last."""

    order: ModelOrder
    client: str
    begun_s: float
    tell: Tell | None
    newest: Report
    told_s: float
    pulled: PullProgress | None = None
    step: OrderStep = field(default_factory=OrderStep)

    @property
    def ended(self) -> bool:
        return isinstance(self.newest, OrderResult)


class Orders:
    """The orders of everybody. `take` may be called from any thread; `attend` belongs to the main one.

    `models` are the served ones. What is told is told on the thread that found it out; it must not block.
    """

    def __init__(
        self,
        agent: str,
        *,
        models: Collection[str],
        engines: Engines,
        supervisor: Supervisor,
        pulls: Pulls,
        pins: Pins,
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._agent = agent
        self._models = models
        self._engines = engines
        self._supervisor = supervisor
        self._pulls = pulls
        self._pins = pins
        self._now_s = now_s
        self._lock = threading.Lock()
        self._orders: OrderedDict[tuple[str, str], _OpenOrder] = OrderedDict()

    def take(self, client: str, order: ModelOrder, tell: Tell | None = None) -> Report:
        """Begin what is ordered, or find it begun or ended before; tell and return how far it is.

        Raises EdgeAgentError before anything has changed.
        """
        with self._lock:
            known = self._orders.get((client, order.op_id))
            if known is not None:
                if known.order != order:
                    raise EdgeAgentError(Code.DUPLICATE_ID, "op_id: was used for another order; take a new one")
                known.tell = tell or known.tell
            else:
                self._check(order)
                known = self._begin(client, order, tell)
            newest = known.newest
        if tell is not None:
            tell(newest)
        return newest

    def attend(self) -> None:
        """See how far all are; call it after the supervisor looked after the engines."""
        with self._lock:
            for each in [each for each in self._orders.values() if not each.ended]:
                if each.order.op != "pull":
                    status = self._engines.status(each.order.model)
                    each.step = follow(each.order.verb, status, age_s=self._now_s() - each.begun_s)
                self._report(each)

    # Under the lock

    def _check(self, order: ModelOrder) -> None:
        if order.op != "pull" and order.model not in self._models:
            raise EdgeAgentError(Code.UNKNOWN_MODEL, f"model: this agent serves {', '.join(self._models)}")
        if sum(not each.ended for each in self._orders.values()) >= OPEN_MAX:
            raise EdgeAgentError(Code.QUEUE_FULL, f"{OPEN_MAX} orders are under way; try again later", retry_after_s=10)
        if order.verb == "unload" and self._engines.status(order.model).pinned:
            raise EdgeAgentError(Code.UNSUPPORTED, "model: is pinned; unpin it first")

    def _begin(self, client: str, order: ModelOrder, tell: Tell | None) -> _OpenOrder:
        now_s = self._now_s()
        status = OrderStatus(agent=self._agent, op_id=order.op_id, op=order.op, model=order.model)
        known = _OpenOrder(order, client, now_s, tell, status, now_s)
        match order.verb:
            case "load":
                self._supervisor.ask(order.model)
            case "unload":
                self._supervisor.dismiss(order.model)
            case "pin":
                self._pin(order.model, pinned=True)
                self._supervisor.ask(order.model)
            case "unpin":
                self._pin(order.model, pinned=False)
            case "pull":
                self._pulls.add(
                    order.model,
                    progress=lambda progress: self._pulled(known, progress),
                    done=lambda error: self._fetched(known, error),
                )
        log.info("order.taken", op=order.verb, model=order.model, client=client, op_id=order.op_id)
        self._orders[client, order.op_id] = known
        ended = [key for key, each in self._orders.items() if each.ended]
        for key in ended[: max(0, len(self._orders) - REMEMBERED_MAX)]:
            del self._orders[key]
        return known

    def _pin(self, model: str, *, pinned: bool) -> None:
        """Pin a model or not, on disk first. Raises EdgeAgentError STORAGE_FULL."""
        self._pins.write(self._pinned() | {model} if pinned else self._pinned() - {model})
        self._supervisor.pin(model, pinned=pinned)

    def _pinned(self) -> set[str]:
        return {name for name in self._models if self._engines.status(name).pinned}

    def _report(self, each: _OpenOrder) -> None:
        """Tell what is new of an order, its end at once and the rest now and then."""
        now_s, order, step = self._now_s(), each.order, each.step
        if step.done or step.failure is not None:
            self._end(each, step)
        elif now_s - each.told_s >= PROGRESS_S:
            pulled = each.pulled
            report = OrderStatus(
                agent=self._agent,
                op_id=order.op_id,
                op=order.op,
                model=order.model,
                reason=step.reason or None,
                done_bytes=pulled.done_bytes if pulled else None,
                total_bytes=pulled.total_bytes if pulled else None,
            )
            if report != each.newest:
                self._tell(each, report)

    def _end(self, each: _OpenOrder, step: OrderStep) -> None:
        order = each.order
        if step.failure is not None and order.verb in ("load", "pin"):
            self._supervisor.relent(order.model)
        if step.failure is not None and order.verb == "unload":
            self._supervisor.keep(order.model)
        if step.failure is not None and order.verb == "pin":
            self._supervisor.pin(order.model, pinned=False)
            with contextlib.suppress(EdgeAgentError):  # on a full disk it stands there until the next pin
                self._pins.write(self._pinned())
        status = self._engines.status(order.model) if order.model in self._models else None
        report = OrderResult(
            agent=self._agent,
            op_id=order.op_id,
            op=order.op,
            model=order.model,
            state="succeeded" if step.failure is None else "failed",
            phase=status.phase if status else None,
            pinned=status.pinned if status else None,
            took_s=round(self._now_s() - each.begun_s, 2),
            error=step.failure,
        )
        code = step.failure.code if step.failure else None
        log.info("order.ended", op=order.verb, model=order.model, client=each.client, op_id=order.op_id, code=code)
        self._tell(each, report)

    def _tell(self, each: _OpenOrder, report: Report) -> None:
        each.newest, each.told_s = report, self._now_s()
        if each.tell is not None:
            each.tell(report)

    # On the thread of pulls

    def _pulled(self, each: _OpenOrder, progress: PullProgress) -> None:
        with self._lock:
            if not each.ended:
                each.pulled, each.step = progress, OrderStep(progress.phase)
                self._report(each)

    def _fetched(self, each: _OpenOrder, error: EdgeAgentError | None) -> None:
        with self._lock:
            each.step = OrderStep(done=True) if error is None else OrderStep(failure=Failure.of(error))
            self._report(each)
