"""What is known of a fleet: each agent by its own words, nobody by a bad payload; how it is listed and added up."""

from dataclasses import asdict

import pytest
from fleeting import ROOT, Band, engine
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.fleet import roster
from edge_agent.fleet.liveness import SILENCE_S
from edge_agent.fleet.roster import AGENTS_MAX, BYTES_MAX, SAMPLES_MAX
from edge_agent.fleet.rows import STATES, SortOrder, Totals, rows, unheard
from edge_agent.protocol.messages import Inbound
from edge_agent.protocol.payloads import MachineInfo, ServedModel

GIB = 2**30


@pytest.fixture
def band():
    return Band()


def only(band, **how):
    (found,) = rows(band.roster, band.now_s, **how)
    return found


def test_a_living_agent_is_shown_by_what_it_last_said(band):
    band.born(
        "edge-01",
        memory_total_bytes=8 * GIB,
        memory_available_bytes=2 * GIB,
        hottest_celsius=61.0,
        heat_margin_c=24.0,
        counters={"succeeded": 5},
    )
    band.now_s = 4.0
    row = only(band)
    assert (row.agent, row.state, row.model, row.device, row.backend) == ("edge-01", "ready", "phi", "cpu", "onnx")
    assert (row.running, row.waiting, row.lanes, row.tokens_per_s) == (1, 3, 2, 9.5)
    assert (row.heat_celsius, row.heat_margin_c, row.memory_percent) == (61.0, 24.0, 75.0)
    assert (row.version, row.board, row.succeeded, row.last_seen_s) == ("0.1.0", "Raspberry Pi 5", 5, 4.0)


def test_the_newest_word_on_health_is_the_one_that_counts(band):
    band.presence("edge-01", health="starting")
    assert only(band).state == "starting"
    band.telemetry("edge-01", health="degraded", reasons=("the disk is full",))
    assert (only(band).state, only(band).reasons) == ("degraded", ("the disk is full",))
    band.presence("edge-01", health="unhealthy", reason="no model is served")
    assert (only(band).state, only(band).reasons) == ("unhealthy", ("no model is served",))


def test_an_agent_that_is_gone_tells_nothing_of_the_present(band):
    """What it is stays known; what it did last would look as if it did it still."""
    band.born("edge-01")
    band.presence("edge-01", "offline")
    row = only(band)
    assert (row.state, row.reasons, row.model, row.version) == ("offline", ("connection lost",), "phi", "0.1.0")
    assert row.running is row.waiting is row.tokens_per_s is row.uptime_s is None


def test_a_silent_agent_is_lost_by_its_own_period(band):
    band.born("slow", period_s=30)
    band.born("quick", period_s=1)
    band.now_s = 5.0
    assert {row.agent: row.state for row in rows(band.roster, band.now_s)} == {"slow": "ready", "quick": "lost"}
    band.telemetry("quick")
    assert {row.state for row in rows(band.roster, band.now_s)} == {"ready"}


def test_what_the_broker_kept_is_not_a_word(band):
    """Broker and agent may have been killed together: what it kept says `online` for ever."""
    band.presence("edge-01", retained=True)
    band.info("edge-01", retained=True)
    assert (only(band).state, only(band).last_seen_s, unheard(band.roster, band.now_s)) == ("ready", None, 1)
    band.now_s = SILENCE_S + 1
    assert (only(band).state, unheard(band.roster, band.now_s)) == ("lost", 0)


def test_who_reports_seldom_is_known_to_from_what_the_broker_kept(band):
    band.presence("edge-01", retained=True)
    band.info("edge-01", retained=True, telemetry_period_s=600)
    band.now_s = 1799.0
    assert only(band).state == "ready"
    band.now_s = 1801.0
    assert only(band).state == "lost"


def test_nobody_is_lost_while_we_do_not_listen(band):
    band.born("edge-01", period_s=1)
    band.now_s = 2.0
    band.roster.deaf(band.now_s)
    band.now_s = 100.0
    assert (only(band).state, only(band).last_seen_s) == ("ready", 100.0)
    band.roster.hearing(band.now_s)
    band.now_s = 102.0
    assert only(band).state == "ready"
    band.now_s = 104.0
    assert only(band).state == "lost"


def test_a_will_is_no_word_of_the_agent(band):
    band.born("edge-01", period_s=1)
    band.now_s = 4.0
    band.presence("edge-01", "offline", boot_id="before")
    assert only(band).state == "lost"


def test_who_is_cleared_from_the_broker_is_forgotten(band):
    band.born("edge-01")
    band.say("edge-01", "presence", b"")
    assert len(band.roster) == 0


BAD = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[" * 100_000,
    b'{"agent":"edge-01"}',
    b'{"agent":"edge-02","state":"online","boot_id":"b","conn_seq":1}',
    b'{"agent":"edge-01","state":"online","boot_id":"b","conn_seq":1e999}',
    b'{"agent":"edge-01","version":"1","boot_id":"b","uptime_s":1,"health":"ready","queue":{"queued":1'
    + b"0" * 4000
    + b"}}",
]


@pytest.mark.parametrize("leaf", list(BYTES_MAX))
@pytest.mark.parametrize("payload", BAD, ids=range(len(BAD)))
def test_a_bad_payload_changes_nothing_but_a_count(band, leaf, payload):
    if leaf == "presence" and not payload:
        pytest.skip("this one has a meaning")
    band.born("edge-01")
    before = rows(band.roster, band.now_s)
    band.say("edge-01", leaf, payload)
    assert rows(band.roster, band.now_s) == before
    assert band.roster.member("edge-01").faults == 1


@given(leaf=st.sampled_from(sorted(BYTES_MAX)), payload=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_payload_breaks_the_view(leaf, payload):
    band = Band()
    band.born("edge-01")
    band.say("edge-02", leaf, payload)
    assert [row.agent for row in rows(band.roster, band.now_s) if row.state == "ready"] == ["edge-01"]


def test_a_payload_over_its_bound_is_not_even_read(band):
    band.born("edge-01")
    band.info("edge-01", pools=tuple("x" * 400 for _ in range(100)))
    assert (band.roster.member("edge-01").faults, only(band).pools) == (1, ())


def texts(value):
    """Every text in a value, the keys too."""
    match value:
        case str():
            yield value
        case dict():
            for name, each in value.items():
                yield from texts(name)
                yield from texts(each)
        case tuple() | list():
            for each in value:
                yield from texts(each)


def test_nothing_that_moves_a_cursor_gets_in(band):
    """Escape sequences, C1 codes, line ends, text that turns the direction of writing."""
    evil = "\x1b[2J\x9b31m\r\nphi\u202e\u2028\x07"
    band.presence("edge-01", health=evil, reason=evil)
    band.info("edge-01", version=evil, machine=MachineInfo(board=evil), models=(ServedModel(name=evil, state=evil),))
    band.telemetry(
        "edge-01",
        health="degraded",
        reasons=(evil * 100,),
        engines=(engine(model=evil, device=evil),),
        queue={evil: 2},
    )
    member = band.roster.member("edge-01")
    for each in (asdict(only(band)), *(said.model_dump() for said in (member.presence, member.info, member.telemetry))):
        assert all(text.isprintable() for text in texts(each))
    assert "phi" in only(band).model
    assert len(only(band).reasons[0]) <= 500


@pytest.mark.parametrize("name", ["Edge 01", "edge-01\x1b", "x" * 64, "", "a/b"])
def test_a_name_that_is_none_is_nobody(band, name):
    assert not band.say(name, "presence", b"{}")
    assert len(band.roster) == 0


@pytest.mark.parametrize("topic", ["edge/v1/agents/edge-01/evt/jobs/j/status", "other/agents/edge-01/evt/presence"])
def test_other_topics_are_passed_over(band, topic):
    assert not band.roster.take(Inbound(topic, b"{}"), 0.0)


def test_more_agents_than_can_be_shown_are_said_to_be_there(band, monkeypatch):
    monkeypatch.setattr(roster, "AGENTS_MAX", 3)
    for number in range(5):
        band.born(f"edge-{number}")
    assert (len(band.roster), band.roster.overlooked) == (3, True)
    assert AGENTS_MAX >= 300


def test_speeds_are_counted_between_reports_of_one_start(band):
    band.telemetry("edge-01", uptime_s=10.0, counters={"completion_tokens": 100})
    assert only(band).throughput_per_s is None
    band.telemetry("edge-01", uptime_s=20.0, counters={"completion_tokens": 350})
    assert only(band).throughput_per_s == 25.0
    band.telemetry("edge-01", boot_id="again", uptime_s=1.0, counters={})
    assert only(band).throughput_per_s is None


def test_the_history_has_an_end(band):
    for number in range(SAMPLES_MAX + 20):
        band.telemetry("edge-01", uptime_s=float(number))
    assert len(band.roster.member("edge-01").samples) == SAMPLES_MAX


def fleet(band):
    band.born("ok-2", hottest_celsius=50.0)
    band.born("ok-1", hottest_celsius=70.0, queue={"queued": 9, "running": 2})
    band.born("ill", health="unhealthy", reasons=("no model fits",))
    band.born("warm", health="degraded")
    band.born("gone")
    band.presence("gone", "offline")
    band.presence("odd", health="sleepy")


def test_the_worst_come_first_and_the_rest_by_name(band):
    fleet(band)
    assert [row.agent for row in rows(band.roster, band.now_s)] == ["ill", "gone", "warm", "odd", "ok-1", "ok-2"]


@pytest.mark.parametrize(
    ("sort", "first"),
    [(SortOrder.AGENT, "gone"), (SortOrder.HEAT, "ok-1"), (SortOrder.QUEUE, "ok-1"), (SortOrder.HEALTH, "ill")],
)
def test_orders(band, sort, first):
    fleet(band)
    ordered = rows(band.roster, band.now_s, sort=sort)
    assert ordered[0].agent == first
    assert rows(band.roster, band.now_s, sort=sort, reverse=True)[-1].agent == first


def test_every_order_takes_agents_of_which_nothing_is_known(band):
    fleet(band)
    band.presence("bare", health=None)
    for sort in SortOrder:
        assert len(rows(band.roster, band.now_s, sort=sort)) == 7


@pytest.mark.parametrize(
    ("words", "found"), [("OK", 2), ("ok-1 ready", 1), ("no model", 1), ("raspberry", 5), ("xyz", 0)]
)
def test_all_words_of_a_filter_must_be_known_of_an_agent(band, words, found):
    fleet(band)
    assert len(rows(band.roster, band.now_s, words=words)) == found


def test_totals(band):
    fleet(band)
    totals = Totals.of(rows(band.roster, band.now_s))
    assert totals.states == {"unhealthy": 1, "offline": 1, "degraded": 1, "unknown": 1, "ready": 2}
    assert list(totals.states) == [state for state in STATES if state in totals.states]
    assert (totals.running, totals.waiting, totals.throughput_per_s) == (5, 18, None)


def test_the_topics_are_those_of_events_and_of_no_jobs(band):
    assert set(band.roster.filters) == {f"{ROOT}/agents/+/evt/{leaf}" for leaf in BYTES_MAX}
