"""When an agent is in its pools, and how many jobs a requester lets be on their way to one."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.signal import Signal
from edge_agent.client.send_window import ANSWER_S, PAUSE_FIRST_S, PAUSE_MOST_S, STIR_S, WINDOW_MOST, SendWindow
from edge_agent.mqtt.access import Access
from edge_agent.protocol.topics import Topics
from edge_agent.serving import pool as pool_module
from edge_agent.serving.pool import Pools, PoolView, absence, full


def view(unfinished=0, *, lanes=4, member=False, connected=True, healthy=True):
    return PoolView(member=member, connected=connected, healthy=healthy, unfinished=unfinished, lanes=lanes)


# Agents


@pytest.mark.parametrize(
    ("lanes", "leaves_at", "back_at"),
    [(1, 2, 1), (2, 4, 3), (4, 8, 6), (5, 10, 7)],
)
def test_an_agent_leaves_with_a_lane_of_waiting_jobs_and_comes_back_at_half(lanes, leaves_at, back_at):
    """Jobs that run count for nothing, nor whether they came through a pool: room is room."""
    stays = [n for n in range(20) if absence(view(n, lanes=lanes, member=True)) is None]
    comes = [n for n in range(20) if absence(view(n, lanes=lanes)) is None]
    assert (stays, comes) == (list(range(leaves_at)), list(range(back_at + 1)))


@given(st.integers(0, 100), st.integers(1, 16), st.booleans())
def test_no_agent_in_a_pool_refuses_its_jobs(unfinished, lanes, member):
    """But for those that came while it was leaving."""
    if absence(view(unfinished, lanes=lanes, member=member)) is None:
        assert not full(unfinished, lanes)


@pytest.mark.parametrize("fields", [{"connected": False}, {"healthy": False}, {"lanes": 0}])
def test_who_is_not_well_is_in_no_pool(fields):
    for member in (False, True):
        assert absence(view(member=member, **fields))


class Membership:
    """Pools on a scripted connection; `journal` holds what became of it."""

    def __init__(self, monkeypatch):
        self.journal, self.woken, self.lanes = [], 0, 1
        self.connected, self.healthy, self.unfinished = True, True, 0
        monkeypatch.setattr(pool_module, "Link", self.link)
        self.pools = Pools(
            Access("127.0.0.1", 1883, client_id="edge-01", session_expiry_s=3600),
            names=["hall", "yard"],
            topics=Topics("edge/v1", "edge-01"),
            link=self,
            room=self,
            wake=self,
        )

    def set(self):
        self.woken += 1

    def link(self, access, *, subscriptions, thread):
        self.access, self.thread, self.on_subscribed = access, thread, Signal()
        self.filters = tuple(each.topic for each in subscriptions)
        start, stop = (lambda step=step: self.journal.append(step) for step in ("joined", "left"))
        return SimpleNamespace(start=start, stop=stop, on_received=Signal(), on_subscribed=self.on_subscribed)

    def attend(self, **facts):
        """Look after it once, things being so; return what became of the connection."""
        vars(self).update(facts)
        before = len(self.journal)
        self.pools.attend(healthy=self.healthy)
        return self.journal[before:]


@pytest.fixture
def membership(monkeypatch):
    return Membership(monkeypatch)


def test_the_connection_to_the_pools_is_one_of_its_own_that_leaves_nothing_behind(membership):
    assert membership.attend() == ["joined"]
    access = membership.access
    assert (access.client_id, access.clean_start, access.session_expiry_s, access.receive_max) == (
        "edge-01.pool",
        True,
        0,
        1,
    )
    assert membership.filters == ("$share/hall/edge/v1/pools/hall/job/+", "$share/yard/edge/v1/pools/yard/job/+")


def test_it_leaves_by_disconnecting_and_comes_back_with_room(membership):
    assert membership.attend() == ["joined"]
    assert membership.attend(unfinished=1) == []
    assert membership.attend(unfinished=2) == ["left"]
    assert membership.attend() == []
    assert membership.attend(unfinished=1) == ["joined"]
    for fact in ("connected", "healthy"):
        assert membership.attend(**{fact: False}) == ["left"]
        assert membership.attend(**{fact: True}) == ["joined"]
    membership.pools.stop()
    assert membership.journal[-1] == "left"


def test_the_main_thread_is_woken_when_it_is_time_and_only_then(membership):
    membership.attend()
    for unfinished, woken in ((1, 0), (2, 1), (1, 1)):
        membership.unfinished = unfinished
        membership.pools.look()
        assert membership.woken == woken


def test_what_the_broker_refuses_is_not_asked_for_before_the_agent_connects_anew(membership):
    membership.attend()
    membership.on_subscribed({membership.filters[0]: "Not authorized"})
    assert membership.attend() == []  # the other pool is there
    membership.on_subscribed(dict.fromkeys(membership.filters, "Not authorized"))
    assert membership.woken == 2
    assert membership.attend() == ["left"]
    assert membership.attend() == []
    assert membership.pools.reasons == ("not in the pool hall: Not authorized", "not in the pool yard: Not authorized")
    membership.pools.reset()
    assert membership.attend() == ["joined"]


# Requesters


def sent(tap, *names, now_s=0.0):
    """Send while the tap is open; return how many were."""
    count = 0
    for name in names:
        if not tap.open(now_s):
            break
        tap.sent(name, now_s)
        count += 1
    return count


NAMES = [f"job-{number}" for number in range(100)]


def test_more_jobs_are_on_their_way_while_agents_take_them():
    tap = SendWindow()
    assert sent(tap, *NAMES) == 1
    tap.taken("job-0")
    assert sent(tap, *NAMES) == 2
    for name in NAMES:
        tap.sent(name, 0.0)
        tap.taken(name)
    assert sent(tap, *NAMES) == WINDOW_MOST


def test_when_no_agent_has_room_one_job_asks_now_and_then():
    """Sooner at first; as soon as one is taken all goes on."""
    tap, now_s, pauses = SendWindow(), 0.0, []
    for _ in range(6):
        assert sent(tap, "a", now_s=now_s) == 1
        tap.full("a", now_s)
        begun_s = now_s
        while not tap.open(now_s):
            now_s += 0.05
        pauses.append(now_s - begun_s)
    assert pauses == pytest.approx([PAUSE_FIRST_S, 0.4, 0.8, 1.6, PAUSE_MOST_S, PAUSE_MOST_S], abs=0.06)
    tap.sent("a", now_s)
    tap.taken("a")
    assert tap.open(now_s)


def test_when_a_job_begins_there_may_be_room_again():
    tap = SendWindow()
    for _ in range(5):
        tap.sent("a", 0.0)
        tap.full("a", 0.0)
    assert not tap.open(STIR_S)
    tap.stir(0.0)
    assert not tap.open(0.0)
    assert sent(tap, *NAMES, now_s=STIR_S) == 1


def test_a_job_nobody_answers_does_not_keep_the_others_back():
    tap = SendWindow()
    tap.sent("lost", 0.0)
    assert not tap.open(ANSWER_S / 2)
    assert tap.open(ANSWER_S)


def test_answers_to_what_was_not_sent_change_nothing():
    tap = SendWindow()
    tap.full("unknown", 0.0)
    tap.taken("unknown")
    assert sent(tap, *NAMES) == 1
