"""Birth and death on the broker, in order, and what is done when something else is believed of us."""

import json
import threading

import pytest
from fakes import PATIENCE_S
from structlog.testing import capture_logs

from edge_agent.base.signal import Signal
from edge_agent.health.condition import Condition
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import DecisionReport, Info, Limits, MachineInfo, ModelDecision, Presence
from edge_agent.protocol.topics import Topics
from edge_agent.serving.presence import ANOTHER, CLONE, CLONE_S, DUPLICATE_S, VANISHED, Announcer
from edge_agent.serving.retained import MEND_S
from edge_agent.serving.strangers import MOST

TOPICS = Topics("edge/v1", "edge-01")


class Desk:
    """An announcer and what it said."""

    def __init__(self):
        self.said = []
        self.now_s = 0.0
        self.models = ()
        self.now = Condition("ready")
        self.announcer = Announcer(
            TOPICS,
            boot_id="ours",
            tag="our tag",
            now_s=lambda: self.now_s,
        )
        self.announcer.on_said.connect(self.said.append)

    def condition(self):
        return self.now

    def decisions(self):
        return DecisionReport(agent="edge-01", boot_id="ours", models=self.models)

    @staticmethod
    def describe(conn_seq):
        limits = Limits(payload_bytes=1, queue_jobs=1, queue_bytes=1, ttl_s=1.0)
        return Info(
            agent="edge-01",
            protocol=1,
            version="0.1.0",
            boot_id="ours",
            conn_seq=conn_seq,
            machine=MachineInfo(),
            models=(),
            limits=limits,
        )

    def presences(self):
        bodies = [json.loads(each.payload) for each in self.said if each.topic.endswith("/presence")]
        return [(body["state"], body["conn_seq"], body.get("health")) for body in bodies]

    def see(self, state, *, boot_id="ours", conn_seq=1, reason=None, session=None):
        presence = Presence(
            agent="edge-01", state=state, boot_id=boot_id, conn_seq=conn_seq, reason=reason, session=session
        )
        self.announcer.seen(Inbound(TOPICS.event("presence"), presence.encode()), self)

    def born(self, conn_seq=1):
        """Connect, and see the birth come back from the broker."""
        self.announcer.birth(conn_seq, self)
        self.see("online", conn_seq=conn_seq)


@pytest.fixture
def desk():
    return Desk()


def test_every_connection_has_a_birth_of_its_own(desk):
    """Retained, QoS 1; a will names the connection it belongs to."""
    desk.born(1)
    desk.born(4)
    assert desk.presences() == [("online", 1, "ready"), ("online", 4, "ready")]
    assert all(each.retain and each.qos == 1 for each in desk.said)
    assert json.loads(desk.announcer.will(5).payload)["conn_seq"] == 5


def test_nothing_is_said_twice_and_news_at_once(desk):
    desk.announcer.refresh(desk)
    assert desk.said == []
    desk.born()
    desk.announcer.refresh(desk)
    desk.now = Condition("degraded", ("the disk is full",))
    desk.announcer.refresh(desk)
    assert desk.presences() == [("online", 1, "ready"), ("online", 1, "degraded")]


def test_the_farewell_is_the_last_word(desk):
    """Also when it comes while a refresh in another thread is just being said."""
    desk.born()
    farewell = threading.Thread(target=desk.announcer.farewell, args=("stopped",))

    def say(_publication):
        if farewell.ident is None:
            farewell.start()
            farewell.join(0.05)

    desk.announcer.on_said = Signal()
    desk.announcer.on_said.connect(say, desk.said.append)
    desk.now = Condition("degraded")
    desk.announcer.refresh(desk)
    farewell.join(PATIENCE_S)
    desk.announcer.refresh(desk)
    desk.see("offline", boot_id="theirs")
    assert [state for state, _, _ in desk.presences()][-2:] == ["online", "offline"]


@pytest.mark.parametrize("late", [{"boot_id": "before"}, {"conn_seq": 0}])
def test_a_late_will_is_overwritten(desk, late):
    """One of an earlier life, or of an earlier connection of this one."""
    desk.born()
    desk.see("offline", **late)
    assert desk.presences() == [("online", 1, "ready")] * 2
    assert not desk.announcer.duplicate


def test_what_is_no_presence_is_overwritten(desk):
    desk.born()
    desk.announcer.seen(Inbound(TOPICS.event("presence"), b"gone"), desk)
    assert len(desk.presences()) == 2


def test_the_will_of_this_connection_is_left_to_the_next_birth(desk):
    desk.born()
    desk.see("offline")
    assert len(desk.presences()) == 1


def test_a_living_agent_of_our_name_is_a_duplicate(desk):
    desk.born()
    desk.see("online", boot_id="theirs")
    assert desk.announcer.duplicate
    assert len(desk.presences()) == 1  # shouting back would never end


def test_a_duplicate_not_seen_again_is_forgotten(desk):
    desk.born()
    desk.see("online", boot_id="theirs")
    desk.now_s = DUPLICATE_S + 1
    assert not desk.announcer.duplicate


def test_a_duplicate_that_says_farewell_is_forgotten_at_once(desk):
    desk.born()
    desk.see("online", boot_id="theirs")
    desk.see("offline", boot_id="theirs", reason="stopped")
    assert not desk.announcer.duplicate
    assert desk.presences() == [("online", 1, "ready")] * 2  # over the farewell, which is retained under our name


def test_a_duplicate_that_left_while_we_were_away_is_forgotten(desk):
    """It pushed us off the broker; its farewell was kept for us and comes before our next birth does."""
    desk.born()
    desk.announcer.note_duplicate()
    desk.announcer.birth(2, desk)
    desk.see("offline", boot_id="theirs", reason="stopped")
    assert not desk.announcer.duplicate


def test_a_duplicate_that_was_pushed_off_the_broker_is_not_forgotten(desk):
    """It comes back and pushes us off; our health would come and go with each push."""
    desk.born()
    desk.see("online", boot_id="theirs")
    desk.see("offline", boot_id="theirs", reason=json.loads(desk.announcer.will(1).payload)["reason"])
    assert desk.announcer.duplicate


@pytest.mark.parametrize("state", ["online", "offline"])
def test_what_was_kept_from_our_last_life_is_history(desk, state):
    """The session may still hold what we said before we were killed; it comes before our birth does."""
    desk.announcer.birth(1, desk)
    desk.see(state, boot_id="our last life")
    desk.see("online")
    assert not desk.announcer.duplicate
    assert len(desk.presences()) == 1


def test_agents_with_a_session_each_and_a_session_together_are_told_apart(desk):
    """Of copies of one state folder the broker lets only one be there, and what it says of the other proves nothing."""
    desk.born()
    desk.see("online", boot_id="theirs", session="another")
    assert desk.announcer.duplicate == ANOTHER
    desk.see("offline", boot_id="theirs", conn_seq=0, reason=VANISHED, session="another")  # of an earlier connection
    assert desk.announcer.duplicate == ANOTHER
    desk.see("offline", boot_id="theirs", reason=VANISHED, session="another")
    assert not desk.announcer.duplicate
    desk.see("online", boot_id="theirs", session="our tag")
    desk.see("offline", boot_id="theirs", reason=VANISHED, session="our tag")
    assert desk.announcer.duplicate == CLONE


def test_a_copy_that_broke_is_soon_forgotten_and_one_that_comes_back_is_not(desk):
    """It may stay away for an hour, after it was thrown out again and again."""
    desk.born()
    desk.see("online", boot_id="theirs", session="our tag")
    desk.now_s += CLONE_S
    assert not desk.announcer.duplicate
    desk.see("online", boot_id="theirs", conn_seq=2, session="our tag")
    desk.now_s += 2.9 * CLONE_S
    assert desk.announcer.duplicate == CLONE
    desk.see("online", boot_id="theirs", conn_seq=3, session="our tag")
    desk.now_s += DUPLICATE_S
    assert not desk.announcer.duplicate


KEPT = [TOPICS.event("info"), TOPICS.event("decision")]


def echo(desk, begin=0):
    """Let the broker tell what was said."""
    for each in desk.said[begin:]:
        desk.announcer.seen(Inbound(each.topic, each.payload, retained=True), desk)


@pytest.mark.parametrize("topic", KEPT)
@pytest.mark.parametrize("garbage", [b"", b"\xff", b"{}", b"gone", b"[1, 2]"])
def test_what_somebody_else_says_on_a_topic_of_ours_is_overwritten(desk, topic, garbage):
    """On each that is retained, at once, and then at most so often."""
    desk.announcer.birth(1, desk)
    echo(desk)
    begin = len(desk.said)
    for expected in (1, 1):
        desk.announcer.seen(Inbound(topic, garbage, retained=True), desk)
        assert [each.topic for each in desk.said[begin:]] == [topic] * expected
        echo(desk, begin)
    desk.now_s += MEND_S
    desk.announcer.refresh(desk)
    assert [each.topic for each in desk.said[begin:]] == [topic] * 2
    echo(desk, begin + 1)
    desk.announcer.refresh(desk)
    assert len(desk.said) == begin + 2


@pytest.mark.parametrize("topic", [*KEPT, TOPICS.event("presence")])
def test_what_is_overwritten_without_end_fills_no_log(desk, topic):
    desk.announcer.birth(1, desk)
    echo(desk)
    with capture_logs() as lines:
        for number in range(10 * MOST):
            begin = len(desk.said)
            desk.announcer.seen(Inbound(topic, f"garbage {number}".encode(), retained=True), desk)
            echo(desk, begin)
    assert sum(each["event"] == "presence.overwritten" for each in lines) == MOST


def test_what_the_broker_kept_of_an_earlier_connection_is_overwritten_by_the_birth_alone(desk):
    desk.announcer.birth(1, desk)
    for topic in KEPT:
        desk.announcer.seen(Inbound(topic, b"of old", retained=True), desk)
    assert len(desk.said) == 3


def test_an_older_word_of_ours_said_by_somebody_else_is_overwritten(desk):
    desk.announcer.birth(1, desk)
    echo(desk)
    before = len(desk.said)
    desk.models = (ModelDecision(name="phi", context_tokens=1, parallel=1),)
    desk.announcer.refresh(desk)
    echo(desk, before)
    old = next(each for each in desk.said if each.topic == KEPT[1])
    desk.announcer.seen(Inbound(old.topic, old.payload, retained=True), desk)
    assert desk.said[-1] == desk.said[before]
    assert len(desk.said) == before + 2


def test_two_agents_of_one_name_do_not_overwrite_each_other_for_ever(desk):
    desk.born()
    echo(desk)
    desk.see("online", boot_id="theirs", session="another")
    before = len(desk.said)
    for _ in range(9):
        desk.now_s += MEND_S
        desk.announcer.seen(Inbound(KEPT[0], b"theirs", retained=True), desk)
    assert len(desk.said) == before
