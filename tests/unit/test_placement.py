"""How a requester places a job of a pool: the first acceptor is followed, later ones canceled, losses offered again.

Driven step by step, without threads: the connection is scripted, time moves by hand.
"""

import json
import os

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.signal import Signal
from edge_agent.client import client as client_module
from edge_agent.client.client import EdgeClient
from edge_agent.client.handle import JobRejectedError
from edge_agent.client.order_book import EXPIRY_S
from edge_agent.client.placement import CANCEL_GRACE_S, LAST_WORD_S, RESEND_FIRST_S
from edge_agent.client.send_window import PAUSE_FIRST_S
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import PACKET_TOO_LARGE, QUOTA_EXCEEDED
from edge_agent.protocol.messages import Inbound

JOBS = "edge/v1/pools/hall/job/me"
TAKEN, UNHEARD = 0x00, 0x10


class ScriptedLink:
    """Keeps what is published; the test plays broker and agents."""

    def __init__(self, _access, **_settings):
        self.connected, self.connections, self.published, self.heard = True, 1, [], []
        self.on_received, self.on_up, self.on_answered = Signal(), Signal(), Signal()
        self.packet_bytes_max = None

    def publish(self, publication):
        if self.packet_bytes_max is not None and len(publication.payload) > self.packet_bytes_max:
            return None
        self.published.append(publication)
        return len(self.published)

    def subscribe(self, topic):
        self.heard.append(topic)


class Desk:
    """A client that is stepped by the test."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(client_module, "Link", ScriptedLink)
        self.now_s = 1000.0
        self.client = EdgeClient(Access("127.0.0.1", 1, client_id="me"), now_s=lambda: self.now_s)
        self.client._open_in = os.getpid()
        self.link = self.client._link

    def step(self, seconds=0.0):
        """Let time pass and the client do what it does then; return the topics it published to."""
        self.now_s += seconds
        before = len(self.link.published)
        while not self.client._notes.empty():
            self.client._take(self.client._notes.get())
        self.client._chase()
        return [each.topic for each in self.link.published[before:]]

    def submit(self, name="job-1", *, agent=None, **fields):
        pool = None if agent else "hall"
        return self.client.submit(agent, pool=pool, job_id=name, prompt="How is the pump?", **fields)

    def broker(self, reason, mid=None):
        self.client._notes.put(client_module._RequestAnswered(mid or len(self.link.published), reason))
        return self.step()

    def hear(self, agent, leaf, name="job-1", **body):
        """Receive something an agent says of a job."""
        topic = f"edge/v1/clients/me/inbox/{agent}/{name}/{leaf}"
        body = {"agent": agent, "job_id": name} | body
        self.client._notes.put(Inbound(topic, json.dumps(body).encode()))
        return self.step()

    def accept(self, agent, name="job-1", state="queued", state_seq=1):
        return self.hear(agent, "status", name, state=state, state_seq=state_seq, attempt=0)

    def reject(self, agent, code, *, retryable=True, name="job-1"):
        error = {"code": code, "message": "no", "retryable": retryable}
        return self.hear(agent, "status", name, state="rejected", state_seq=0, error=error)

    def result(self, agent, state="succeeded", name="job-1"):
        body = {"state": state, "attempt": 1, "text": agent, "model": "phi", "agent_version": "0", "metadata": {}}
        return self.hear(agent, "result", name, **body)

    def presence(self, agent, state, boot_id="b", conn_seq=1):
        body = {"agent": agent, "state": state, "boot_id": boot_id, "conn_seq": conn_seq}
        self.client._notes.put(Inbound(f"edge/v1/agents/{agent}/evt/presence", json.dumps(body).encode()))
        return self.step()


@pytest.fixture
def desk(monkeypatch):
    return Desk(monkeypatch)


def cancel(agent):
    return f"edge/v1/agents/{agent}/cmd/cancel/me"


def refusal(handle):
    with pytest.raises(JobRejectedError) as caught:
        handle.result(0)
    return caught.value


def test_the_first_acceptor_is_followed_and_later_ones_are_canceled(desk):
    """It is asked after by itself, its presence is watched, its result is the job's."""
    handle = desk.submit()
    assert desk.step() == [JOBS]
    assert handle.agent is None
    assert desk.accept("a") == []
    assert handle.agent == "a"
    assert desk.link.heard == ["edge/v1/agents/a/evt/presence"]
    assert desk.accept("b") == [cancel("b")]
    assert desk.accept("a", state="running", state_seq=2) == []
    assert desk.step(31.0) == ["edge/v1/agents/a/cmd/status/me"]
    desk.result("a")
    assert (handle.result(0).text, handle.status.agent) == ("a", "a")


def test_the_first_success_is_taken_whoever_has_it_and_the_others_are_spared(desk):
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    desk.accept("b")
    assert desk.result("b", "canceled") == []
    assert not handle.done
    assert desk.result("b") == [cancel("a")]
    assert (handle.result(0).text, handle.agent) == ("b", "b")
    assert desk.accept("late") == [cancel("late")]


def test_a_job_nobody_answers_is_sent_again_and_again(desk):
    handle = desk.submit(ttl_s=60)
    sent = [bool(desk.step(1.0 if second else 0.0)) for second in range(60)]
    assert [second for second, was in enumerate(sent) if was] == [0, 5, 15, 35, 55]
    desk.step(1.0)
    assert desk.step(LAST_WORD_S) == []
    assert refusal(handle).code is Code.EXPIRED


def test_while_no_agent_is_in_the_pool_one_job_asks_at_once_and_then_now_and_then(desk):
    handles = [desk.submit(f"job-{number}") for number in range(3)]
    assert desk.step() == [JOBS]
    assert desk.broker(UNHEARD) == []
    assert handles[0].unheard
    assert desk.step(0.2) == [JOBS]
    desk.broker(UNHEARD)
    assert desk.step(0.2) == []
    assert desk.step(0.2) == [JOBS]
    assert desk.accept("a", "job-0") == [JOBS, JOBS]


def test_a_job_that_begins_makes_room_for_the_next(desk):
    """Its agent comes back to the pool then; waiting for the time to ask again would leave it idle."""
    desk.submit("first")
    desk.submit("second")
    desk.step()
    assert desk.accept("a", "first") == [JOBS]
    for pause_s in (0.2, 0.4, 0.8):
        desk.broker(UNHEARD)
        assert desk.step(pause_s) == [JOBS]
    desk.broker(UNHEARD)
    assert desk.step(0.1) == []
    assert desk.accept("a", "first", state="running", state_seq=2) == []
    assert desk.step(0.06) == [JOBS]


def test_those_of_higher_priority_are_offered_first(desk):
    desk.submit("low", priority=1)
    desk.submit("high", priority=9)
    desk.step()
    assert json.loads(desk.link.published[0].payload)["job_id"] == "high"


@pytest.mark.parametrize(
    ("code", "again_s"), [(Code.QUEUE_FULL, 0.2), (Code.UNKNOWN_MODEL, RESEND_FIRST_S), (Code.NO_FIT, RESEND_FIRST_S)]
)
def test_what_an_agent_cannot_take_is_offered_again(desk, code, again_s):
    """Soon when it only had no room: another may; later when it never will: it may come to the same again."""
    handle = desk.submit()
    desk.step()
    assert desk.reject("a", code) == []
    assert desk.step(again_s - 0.05) == []
    assert desk.step(0.1) == [JOBS]
    desk.accept("b")
    desk.result("b")
    assert handle.result(0).text == "b"


def test_what_every_agent_would_refuse_ends_the_job(desk):
    handle = desk.submit()
    desk.step()
    desk.reject("a", Code.BAD_REQUEST, retryable=False)
    assert refusal(handle).code is Code.BAD_REQUEST


def test_a_job_nobody_can_do_ends_with_the_reason(desk):
    handle = desk.submit(ttl_s=2)
    desk.step()
    desk.reject("a", Code.UNKNOWN_MODEL)
    desk.step(2.0 + LAST_WORD_S)
    assert refusal(handle).code is Code.UNKNOWN_MODEL


def test_a_job_that_is_handed_back_goes_to_the_next_at_once(desk):
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    assert desk.reject("a", Code.SHUTTING_DOWN) == [JOBS]
    assert handle.agent is None
    desk.accept("b")
    assert desk.hear("a", "chunk", attempt=1, seq=0, text="old", tokens=1) == []
    desk.result("b")
    assert [update.agent for update in handle.updates(0)] == ["a", "b", "b"]


def test_a_job_moves_on_when_its_agent_is_gone(desk):
    """Offline counts only when it is of the last birth; the agent is spared the work when it comes back."""
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    desk.presence("a", "online", conn_seq=2)
    assert desk.presence("a", "offline", conn_seq=1) == []
    assert desk.presence("b", "offline") == []
    assert desk.presence("a", "offline", conn_seq=2) == [JOBS]
    desk.accept("b")
    assert desk.accept("a", state="running", state_seq=4) == [cancel("a")]
    assert handle.agent == "b"


def test_an_agent_that_comes_back_first_keeps_the_job(desk):
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    desk.presence("a", "offline")
    desk.accept("a", state="running", state_seq=4)
    assert handle.agent == "a"


def test_an_agent_that_answers_no_question_any_more_is_as_good_as_gone(desk):
    """Also where the broker lets a requester hear no presence, or lost the will when it died."""
    desk.submit(ttl_s=86_400)
    desk.step()
    desk.accept("a")
    asked = [desk.step(pause_s) for pause_s in (30.1, 5.1, 5.1, 5.1)]
    assert asked == [["edge/v1/agents/a/cmd/status/me"]] * 3 + [[JOBS]]


def test_an_agent_the_broker_does_not_know_is_asked_again_before_it_counts_as_gone(desk):
    """After a restart of the broker it may be on its way back, with the job."""
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    asked = []
    for pause_s in (31.0, 1.0, 2.0, 4.0):
        asked += desk.step(pause_s + 0.1)
        desk.broker(UNHEARD)
    assert asked == ["edge/v1/agents/a/cmd/status/me"] * 3 + [JOBS]
    assert handle.agent is None


def test_that_nobody_heard_an_offer_does_not_matter_once_another_offer_was_accepted(desk):
    handle = desk.submit()
    desk.step()
    desk.step(RESEND_FIRST_S)
    desk.accept("a")
    desk.broker(UNHEARD, mid=2)
    assert handle.agent == "a"


def test_an_agent_that_lost_the_job_does_not_keep_it(desk):
    desk.submit()
    desk.step()
    desk.accept("a")
    assert desk.reject("a", Code.UNKNOWN_JOB, retryable=False) == [JOBS]


def test_a_cancel_goes_to_the_whole_pool_and_ends_a_job_nobody_had(desk):
    """After a moment, in which an agent may still say that it has it."""
    handle = desk.submit()
    desk.step()
    handle.cancel()
    assert desk.step() == ["edge/v1/pools/hall/cancel/me"]
    assert not handle.done
    desk.step(CANCEL_GRACE_S)
    assert refusal(handle).code is Code.CANCELED


def test_a_cancel_of_an_accepted_job_is_answered_by_its_agent(desk):
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    handle.cancel()
    desk.step()
    desk.step(CANCEL_GRACE_S)
    desk.result("a", "canceled")
    assert handle.result(0).state == "canceled"


@pytest.mark.parametrize("agent", [None, "a"])
def test_a_cancel_is_said_again_while_the_job_goes_on(desk, agent):
    """The agent may have been away for longer than the broker keeps it, or its disk was full."""
    handle = desk.submit(agent=agent, ttl_s=3600)
    desk.step()
    desk.accept("a")
    handle.cancel()
    (first,) = desk.step()
    assert desk.step(30.1) == ["edge/v1/agents/a/cmd/status/me", first]
    desk.result("a", "canceled")
    assert desk.step(30.1) == []


def test_an_agent_that_was_told_to_drop_a_job_does_not_end_it(desk):
    """Its canceled row is no outcome, also when the job is offered again and comes to it."""
    handle = desk.submit()
    desk.step()
    desk.accept("a")
    desk.accept("b")
    desk.presence("a", "offline")
    desk.accept("b", state="canceled", state_seq=2)
    desk.result("b", "canceled")
    assert not handle.done
    assert handle.agent is None


def test_after_a_reconnect_an_accepted_job_is_asked_after_and_an_offered_one_keeps_its_time(desk):
    """The word of an agent may be on its way; offered at once, the job would be done by two."""
    desk.submit("placed")
    desk.submit("offered")
    desk.step()
    desk.accept("a", "placed")
    desk.link.connections = 2
    desk.client._notes.put(client_module._Connected())
    assert desk.step() == ["edge/v1/agents/a/cmd/status/me"]
    desk.accept("a", "placed")
    assert desk.step(RESEND_FIRST_S) == [JOBS]


def test_nobody_speaks_for_another(desk):
    """The broker vouches for the agent in the topic."""
    handle = desk.submit()
    desk.step()
    topic = "edge/v1/clients/me/inbox/evil/job-1/status"
    body = {"agent": "a", "job_id": "job-1", "state": "queued", "state_seq": 1}
    desk.client._notes.put(Inbound(topic, json.dumps(body).encode()))
    desk.step()
    assert handle.agent is None


@pytest.mark.parametrize("agent", [None, "a"])
def test_a_job_may_wait_for_days_for_an_agent_that_is_off(desk, agent):
    """Asking less and less often, for as long as its time to live lasts."""
    week_s = 7 * 86_400.0
    handle = desk.submit(agent=agent, ttl_s=week_s)
    sent = sum(len(desk.step(30.0)) for _ in range(int(week_s / 30.0) - 1))
    assert sent > 10_000
    desk.step(30.0 + LAST_WORD_S)
    assert refusal(handle).code is Code.EXPIRED


def test_an_agent_that_has_no_such_job_is_not_asked_over_and_over(desk):
    """When its time to live is over it will not have it any more: that is the end of it."""
    handle = desk.submit(agent="a", ttl_s=60)
    desk.step()
    assert desk.step(60.0) == ["edge/v1/agents/a/cmd/status/me"]
    assert desk.reject("a", Code.UNKNOWN_JOB, retryable=False) == []
    assert refusal(handle).code is Code.EXPIRED


def test_a_job_the_broker_would_not_carry_is_refused_at_once(desk):
    desk.link.packet_bytes_max = 200
    handle = desk.submit(agent="a", metadata={"x": "y" * 200})
    assert desk.step() == []
    assert refusal(handle).code is Code.PAYLOAD_TOO_LARGE


def test_a_broker_that_came_back_and_takes_less_says_so(desk):
    handle = desk.submit(agent="a")
    desk.step()
    desk.broker(PACKET_TOO_LARGE)
    assert refusal(handle).code is Code.PAYLOAD_TOO_LARGE


def test_two_orders_of_one_id_are_not_both_followed(desk):
    """As with jobs: only one of them could hear what becomes of it."""
    first, second = (desk.client.admin("a", "load", "phi", op_id="op-1") for _ in range(2))
    desk.step()
    with pytest.raises(EdgeAgentError) as caught:
        second.result(0)
    assert caught.value.code is Code.DUPLICATE_ID
    desk.client._notes.put(
        Inbound("edge/v1/clients/me/inbox/a/op-1/result", b'{"agent":"a","op_id":"op-1","state":"succeeded"}')
    )
    desk.step()
    assert first.result(0).state == "succeeded"


def test_an_order_is_given_up_while_there_is_no_broker(desk):
    desk.link.connected = False
    handle = desk.client.admin("a", "load", "phi")
    assert desk.step() == []
    desk.step(EXPIRY_S)
    with pytest.raises(EdgeAgentError) as caught:
        handle.result(0)
    assert caught.value.code is Code.EXPIRED


def test_whoever_waits_for_a_client_that_is_closed_is_told(desk):
    """The agent goes on with the job; who still wants it asks for it by its id."""
    job, order = desk.submit(agent="a"), desk.client.admin("a", "load", "phi")
    desk.step()
    late = desk.submit("late", agent="a")
    desk.client._give_up()
    for handle in (job, order, late):
        with pytest.raises(EdgeAgentError, match="closed"):
            handle.result(0)


def test_one_goal_and_no_other(desk):
    for goals in ({}, {"agent": "a", "pool": "hall"}):
        with pytest.raises(EdgeAgentError, match="either an agent or a pool"):
            desk.client.submit(**goals, prompt="x")


def test_a_broker_that_limits_what_a_client_sends_ends_no_job(desk):
    """It takes the same later (0x97); a job it took from nobody in time says so."""
    late, lost = desk.submit("late", agent="a"), desk.submit("lost", agent="a", ttl_s=20)
    assert len(desk.step()) == 2
    for mid in 1, 2:
        desk.broker(QUOTA_EXCEEDED, mid)
    assert late.throttled
    assert len(desk.step(RESEND_FIRST_S)) == 2
    desk.broker(TAKEN, 3)
    desk.broker(QUOTA_EXCEEDED, 4)
    desk.accept("a", "late")
    assert not late.throttled
    desk.step(20.0 + LAST_WORD_S)
    assert (refusal(lost).code, "quota exceeded" in refusal(lost).message) == (Code.EXPIRED, True)
    assert not late.done


def test_a_pool_whose_broker_limits_us_is_asked_less_often(desk):
    """As when no agent has room: one at a time, and not at once."""
    handles = [desk.submit(f"job-{number}") for number in range(3)]
    assert desk.step() == [JOBS]
    assert desk.broker(QUOTA_EXCEEDED) == []
    assert desk.step(PAUSE_FIRST_S) == [JOBS]
    assert not any(handle.done for handle in handles)


def test_a_broker_that_limits_what_a_client_sends_ends_no_order(desk):
    handle = desk.client.admin("a", "load", "phi")
    assert len(desk.step()) == 1
    desk.broker(QUOTA_EXCEEDED)
    assert len(desk.step(RESEND_FIRST_S)) == 1
    desk.broker(QUOTA_EXCEEDED)
    desk.link.connected = False
    desk.step(EXPIRY_S)
    with pytest.raises(EdgeAgentError, match="quota exceeded") as caught:
        handle.result(0)
    assert caught.value.code is Code.EXPIRED


def test_an_end_can_be_asked_for_often_and_holds_nobody(desk):
    """What is raised is new each time: the same one would hold every place it passed, and those the handle."""
    job, order = desk.submit(agent="a"), desk.client.admin("a", "load", "phi")
    desk.step()
    desk.client._give_up()
    for handle in job, order:
        for ask in (handle.result, lambda timeout_s, handle=handle: list(handle.updates(timeout_s))):
            with pytest.raises(EdgeAgentError, match="closed") as caught:
                ask(0)
            assert caught.value.code is Code.SHUTTING_DOWN
        assert handle._error.__traceback__ is None
