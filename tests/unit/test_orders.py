"""Administrators' orders: begun once, followed to their end, told now and then; what is pinned is on disk."""

import threading

import pytest
from fakes import PATIENCE_S, Time
from running import wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.control.orders import OPEN_MAX, PROGRESS_S, REMEMBERED_MAX, WAIT_MOST_S, Orders, follow
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.phase import Phase
from edge_agent.models import catalogue
from edge_agent.models.fetch import PullProgress
from edge_agent.models.pins import Pins
from edge_agent.models.pulls import Pulls
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus

BUILD = catalogue.read().variant[0].name


def order(op, model="phi", op_id="1", **fields):
    return ModelOrder(op_id=op_id, op=op, model=model, **fields)


class Floor:
    """Orders above a supervisor that keeps what it was told, and a store that is filled by hand."""

    def __init__(self, folder):
        self.machine = Time()
        self.statuses = {name: EngineStatus(name, "fake", Phase.UNLOADED, reason="idle") for name in ("phi", "vision")}
        self.called, self.told, self.changes = [], [], 0
        self.arrived = threading.Event()
        self.fault = None
        self.pins = Pins(folder / "pinned")
        self.pulls = Pulls(catalogue.read(), bring=self._bring, decisions=dict)
        self.pulls.on_pulled.connect(self._changed)
        self.orders = Orders(
            "edge-01",
            models=list(self.statuses),
            engines=self,
            supervisor=self,
            pulls=self.pulls,
            pins=self.pins,
            now_s=self.machine.now_s,
        )

    def be(self, phase, reason="", model="phi", **fields):
        self.statuses[model] = EngineStatus(
            model, "fake", phase, reason=reason, pinned=self.statuses[model].pinned, **fields
        )

    def give(self, *arguments, client="admin", **fields):
        return self.orders.take(client, order(*arguments, **fields), self.told.append)

    def pass_s(self, seconds):
        self.machine.pass_s(seconds)
        self.orders.attend()
        return self.told[-1]

    # as the supervisor

    def status(self, model):
        return self.statuses[model]

    def ask(self, model):
        self.called.append(("ask", model))

    def relent(self, model):
        self.called.append(("relent", model))

    def dismiss(self, model):
        self.called.append(("dismiss", model))

    def keep(self, model):
        self.called.append(("keep", model))

    def pin(self, model, *, pinned):
        old = self.statuses[model]
        self.statuses[model] = EngineStatus(model, "fake", old.phase, reason=old.reason, pinned=pinned)

    # as the store

    def _bring(self, _variant, tell, _stop):
        tell(PullProgress("fetching", done_bytes=1, total_bytes=4))
        assert self.arrived.wait(PATIENCE_S)
        if self.fault:
            raise self.fault

    def _changed(self):
        self.changes += 1


@pytest.fixture
def floor(tmp_path):
    made = Floor(tmp_path)
    yield made
    made.arrived.set()
    made.pulls.stop()


def engine(phase, reason="", code=None):
    return EngineStatus("phi", "fake", phase, reason=reason, code=code)


@pytest.mark.parametrize(
    ("verb", "status", "age_s", "done", "reason", "code"),
    [
        (
            "load",
            engine(Phase.UNLOADED, "waits for its turn after text"),
            1,
            False,
            "waits for its turn after text",
            None,
        ),
        ("load", engine(Phase.STARTING, "loading the model"), 1, False, "loading the model", None),
        ("load", engine(Phase.READY), 1, True, "", None),
        ("pin", engine(Phase.FETCHING, "fetches it: 3 %"), 1, False, "fetches it: 3 %", None),
        ("load", engine(Phase.FAILED, "it needs more", Code.NO_FIT), 1, False, "", Code.NO_FIT),
        ("load", engine(Phase.DOWN, "is to be tried again"), 1, False, "is to be tried again", None),
        ("load", engine(Phase.UNLOADED, "heat"), WAIT_MOST_S + 1, False, "", Code.TIMEOUT),
        ("unload", engine(Phase.READY), WAIT_MOST_S - 1, False, "ends what runs", None),
        ("unload", engine(Phase.READY, "an administrator unloaded it"), WAIT_MOST_S + 1, False, "", Code.TIMEOUT),
        ("unload", engine(Phase.STARTING), WAIT_MOST_S + 1, False, "", Code.TIMEOUT),
        ("unload", engine(Phase.UNLOADED), WAIT_MOST_S + 1, True, "", None),
        ("unload", engine(Phase.READY, "an administrator unloaded it"), 1, False, "an administrator unloaded it", None),
        ("unload", engine(Phase.UNLOADED), 1, True, "", None),
        ("unload", engine(Phase.FAILED), 1, True, "", None),
        ("unpin", engine(Phase.UNLOADED), 1, True, "", None),
    ],
)
def test_how_far_an_order_is(verb, status, age_s, done, reason, code):
    step = follow(verb, status, age_s=age_s)
    assert (step.done, step.reason, step.failure and step.failure.code) == (done, reason, code)


def test_a_load_is_told_from_its_acceptance_to_its_end(floor):
    """What it waits for no more often than every two seconds, and only what is new; the end at once."""
    assert floor.give("load") == OrderStatus(agent="edge-01", op_id="1", op="load", model="phi")
    assert floor.called == [("ask", "phi")]
    floor.be(Phase.UNLOADED, "waits for its turn after vision")
    floor.pass_s(PROGRESS_S / 2)
    assert len(floor.told) == 1
    assert floor.pass_s(PROGRESS_S).reason == "waits for its turn after vision"
    floor.pass_s(PROGRESS_S)
    assert len(floor.told) == 2
    floor.be(Phase.READY)
    result = floor.pass_s(0.1)
    assert (result.state, result.phase, result.took_s, result.pinned) == ("succeeded", "ready", 5.1, False)
    floor.pass_s(PROGRESS_S)
    assert len(floor.told) == 3


def test_a_repeat_is_told_how_far_it_is_and_begins_nothing(floor):
    floor.give("load")
    floor.give("load")
    assert floor.told[0] == floor.told[1]
    assert floor.called == [("ask", "phi")]
    floor.be(Phase.READY)
    result = floor.pass_s(0.1)
    assert floor.give("load") == result
    with pytest.raises(EdgeAgentError) as refused:
        floor.give("unload")
    assert refused.value.code is Code.DUPLICATE_ID
    assert floor.give("load", client="another").state == "running"


def test_a_load_that_fails_says_why_and_is_not_wanted_any_more(floor):
    floor.give("load")
    floor.be(Phase.FAILED, "it needs 9 GiB", code=Code.NO_FIT)
    result = floor.pass_s(0.1)
    assert (result.state, result.phase, result.error.code) == ("failed", "failed", Code.NO_FIT)
    assert floor.called == [("ask", "phi"), ("relent", "phi")]


def test_an_unload_whose_jobs_do_not_end_is_given_up_and_the_model_takes_jobs_again(floor):
    floor.be(Phase.READY, "an administrator unloaded it")
    floor.give("unload")
    assert floor.pass_s(WAIT_MOST_S).state == "running"
    result = floor.pass_s(1)
    assert (result.state, result.phase, result.error.code) == ("failed", "ready", Code.TIMEOUT)
    assert floor.called == [("dismiss", "phi"), ("keep", "phi")]


def test_an_unload_is_over_when_the_model_is_pinned_meanwhile(floor):
    floor.be(Phase.READY)
    floor.give("unload")
    floor.give("pin", op_id="2")
    floor.pass_s(0.1)
    ends = {each.op_id: each for each in floor.told if isinstance(each, OrderResult)}
    assert (ends["1"].error.code, ends["2"].state) == (Code.UNSUPPORTED, "succeeded")


def test_pins_are_kept_on_disk_and_withdrawn_when_there_is_no_room(floor):
    floor.give("pin")
    assert floor.pins.read() == {"phi"}
    floor.be(Phase.READY)
    assert floor.pass_s(0.1).pinned
    with pytest.raises(EdgeAgentError, match="pinned; unpin it first"):
        floor.give("unload", op_id="2")
    floor.give("pin", "vision", op_id="3")
    assert floor.pins.read() == {"phi", "vision"}
    floor.be(Phase.FAILED, "no room", model="vision", code=Code.NO_FIT)
    assert floor.pass_s(0.1).state == "failed"
    assert floor.pins.read() == {"phi"}
    floor.give("pin", op_id="4", pinned=False)
    assert floor.pass_s(0.1).state == "succeeded"
    assert floor.pins.read() == set()
    floor.give("unload", op_id="5")
    assert floor.called[-1] == ("dismiss", "phi")


def test_a_pin_that_cannot_be_written_is_refused(floor, tmp_path):
    (tmp_path / "pinned").mkdir()
    with pytest.raises(EdgeAgentError) as refused:
        floor.give("pin")
    assert refused.value.code is Code.STORAGE_FULL
    assert not floor.status("phi").pinned
    assert floor.told == []


@pytest.mark.parametrize(
    ("op", "model", "code"),
    [("load", "other", Code.UNKNOWN_MODEL), ("pull", "other", Code.UNKNOWN_MODEL)],
)
def test_what_is_not_there_is_refused(floor, op, model, code):
    with pytest.raises(EdgeAgentError) as refused:
        floor.give(op, model)
    assert refused.value.code is code


def test_orders_under_way_are_bounded_and_ended_ones_forgotten(floor):
    for number in range(OPEN_MAX):
        floor.give("load", op_id=f"open-{number}")
    with pytest.raises(EdgeAgentError) as refused:
        floor.give("load", op_id="more")
    assert refused.value.code is Code.QUEUE_FULL
    floor.be(Phase.READY)
    floor.pass_s(0.1)
    for number in range(REMEMBERED_MAX):
        floor.give("unpin", op_id=f"ended-{number}")
        floor.pass_s(0.1)
    assert len(floor.orders._orders) == REMEMBERED_MAX
    floor.give("load", op_id="open-0")  # forgotten: begins anew
    assert floor.called.count(("ask", "phi")) == OPEN_MAX + 1


def ended(floor):
    wait_for(lambda: isinstance(floor.told[-1], OrderResult), "the end")
    return floor.told[-1]


def test_a_pull_tells_bytes_and_its_end(floor):
    floor.give("pull", BUILD)
    wait_for(lambda: floor.pass_s(PROGRESS_S).done_bytes, "progress")
    assert (floor.told[-1].reason, floor.told[-1].total_bytes) == ("fetching", 4)
    floor.arrived.set()
    assert ended(floor).state == "succeeded"
    assert floor.changes == 1
    with pytest.raises(EdgeAgentError, match="has several builds; name one"):
        floor.give("pull", "phi-3.5-mini", op_id="2")


def test_a_pull_that_fails_says_why(floor):
    floor.fault = EdgeAgentError(Code.MODEL_MISSING, "the hub has no such file")
    floor.give("pull", BUILD)
    floor.arrived.set()
    result = ended(floor)
    assert (result.state, result.error.message, result.phase) == ("failed", "the hub has no such file", None)
    assert floor.changes == 0
