"""The queue's clock, on machines that reboot, sleep and change their wall clock."""

import pytest
from fakes import Time
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.jobs.clock import OFF_MAX_S, SLACK_S, Clock, boot_id


@pytest.fixture
def machine():
    return Time()


def test_starts_at_unix_time(machine):
    """The first start ever shows the wall clock's time."""
    assert machine.clock().now_s() == machine.wall_s


def test_follows_boot_time_not_the_wall_clock(machine):
    """A wall clock that is set, forward or back, moves nothing."""
    clock = machine.clock()
    before_s = clock.now_s()
    machine.wall_s -= 5_000
    machine.boottime_s += 7
    assert clock.now_s() == before_s + 7


def test_goes_on_over_a_restart_in_the_same_boot(machine):
    """A second start in one boot shows what the first would, whatever the wall clock did meanwhile."""
    first = machine.clock()
    anchor = first.anchor()
    machine.pass_s(60)
    machine.wall_s -= 100_000
    assert machine.clock(anchor).now_s() == first.now_s()


@pytest.mark.parametrize(("away_s", "seen_s"), [(3_600, 3_600), (0, 0), (-86_400, 0)])
def test_counts_a_reboot_by_the_wall_clock_and_never_backwards(machine, away_s, seen_s):
    """Time off counts as the wall clock says; one that went backwards counts as none."""
    anchor = machine.clock().anchor()
    machine.reboot(away_s=away_s)
    clock = machine.clock(anchor)
    assert clock.now_s() == pytest.approx(anchor.queue_s + seen_s)
    machine.pass_s(5)
    assert clock.now_s() == pytest.approx(anchor.queue_s + seen_s + 5)


def test_a_system_without_boot_id_counts_every_start_as_a_reboot(machine):
    """Two unknown boots are not taken for one: the boot time behind the offset may have begun again."""
    machine.boot = ""
    anchor = machine.clock().anchor()
    machine.boottime_s = 1.0
    machine.wall_s += 10
    assert machine.clock(anchor).now_s() == pytest.approx(anchor.queue_s + 10)


def test_reads_this_machine():
    """On Linux the boot has an identity and the clock moves on."""
    assert boot_id()
    clock = Clock(None)
    assert clock.now_s() <= clock.now_s()


# Wall clocks that are wrong

DAY_S = 86_400.0
YEAR_S = 365 * DAY_S
FIRST_S = 1_800_000_000.0
"""The time at which the machines of these tests are made: in 2027."""


class Machine(Time):
    """A machine that knows the true time, and a wall clock that shows another."""

    def __init__(self):
        super().__init__(wall_s=FIRST_S)
        self.true_s = FIRST_S

    def pass_s(self, seconds):
        super().pass_s(seconds)
        self.true_s += seconds

    def reboot(self, *, away_s, shows_s=None):
        self.true_s += away_s
        super().reboot(away_s=0)
        self.wall_s = self.true_s if shows_s is None else shows_s


@pytest.mark.parametrize("shows_s", [0.0, 60.0, 946_684_800.0, 2**31 - 1.0, 3_124_224_000.0, 4_070_908_800.0])
def test_a_clock_that_was_wrong_on_one_boot_adds_nothing_on_that_and_on_the_next(shows_s):
    """1970, 2000, 2038, 2069, 2099: neither when it begins nor when it ends; what passed meanwhile is counted then."""
    machine = Machine()
    anchor = machine.clock().anchor()
    machine.reboot(away_s=10, shows_s=shows_s)
    clock = machine.clock(anchor)
    assert clock.now_s() == pytest.approx(anchor.queue_s)
    assert "the clock shows" in clock.doubt
    machine.pass_s(100)
    anchor = clock.anchor()
    machine.reboot(away_s=20)
    clock = machine.clock(anchor)
    assert clock.now_s() == pytest.approx(machine.true_s)
    assert clock.doubt == ""


@pytest.mark.parametrize("shows_s", [0.0, 3_124_224_000.0])
def test_a_first_start_with_a_wrong_clock_is_followed_by_a_right_one(shows_s):
    machine = Machine()
    machine.wall_s = shows_s
    clock = machine.clock()
    machine.pass_s(100)
    assert clock.doubt
    anchor = clock.anchor()
    machine.reboot(away_s=20)
    clock = machine.clock(anchor)
    assert clock.now_s() == pytest.approx(anchor.queue_s)
    assert not clock.doubt
    anchor = clock.anchor()
    machine.reboot(away_s=30)
    assert machine.clock(anchor).now_s() == pytest.approx(anchor.queue_s + 30)


def test_a_clock_that_is_set_right_in_a_run_is_believed_at_once():
    machine = Machine()
    anchor = machine.clock().anchor()
    machine.reboot(away_s=10, shows_s=0.0)
    clock = machine.clock(anchor)
    machine.pass_s(60)
    assert clock.anchor().wall_s == pytest.approx(machine.true_s - 10)
    machine.wall_s = machine.true_s
    before_s = clock.now_s()
    anchor = clock.anchor()
    assert (clock.doubt, clock.now_s()) == ("", before_s)
    assert anchor.wall_s == machine.true_s


def test_a_clock_that_nobody_sets_right_for_a_day_is_believed():
    """One that is a year ahead, since a machine may have lain for so long; never one that cannot be right."""
    for wrong_s, believed in ((YEAR_S, True), (-30 * DAY_S, True), (-FIRST_S, False)):
        machine = Machine()
        clock = machine.clock()
        machine.wall_s += wrong_s
        clock.anchor()
        assert clock.doubt
        machine.pass_s(DAY_S - 1)
        clock.anchor()
        assert clock.doubt
        machine.pass_s(1)
        before_s = clock.now_s()
        anchor = clock.anchor()
        assert (clock.doubt == "", clock.now_s()) == (believed, before_s)
        machine.boottime_s, machine.boot = 1.0, "next"
        machine.wall_s += 5
        assert machine.clock(anchor).now_s() == pytest.approx(before_s + (5 if believed else 0))


def test_a_boot_time_that_goes_back_stops_the_clock_and_no_more():
    """As in a container that was frozen and thawed elsewhere."""
    machine = Machine()
    anchor = machine.clock().anchor()
    machine.boottime_s -= 50
    assert machine.clock(anchor).now_s() == pytest.approx(anchor.queue_s)


WRONG = st.one_of(
    st.floats(-FIRST_S, -YEAR_S),  # 1970 and later
    st.floats(-YEAR_S, -SLACK_S),  # a saved time, a battery that gave way
    st.floats(OFF_MAX_S + 200 * DAY_S, 130 * YEAR_S),
)
SHOWS = st.one_of(st.just(0.0), WRONG)
"""How wrong a clock is. By how little it may be ahead depends on how long machines are off: that cannot be told."""
LIFE = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.floats(0, 3 * 3600)),
        st.tuples(st.just("reboot"), st.tuples(st.floats(0, 100 * DAY_S), SHOWS)),
        st.tuples(st.just("restart"), SHOWS),
        st.tuples(st.just("set"), SHOWS),
        st.tuples(st.just("correct"), st.floats(-SLACK_S / 100, SLACK_S / 100)),
    ),
    max_size=16,
)


@settings(max_examples=300)
@given(LIFE)
def test_no_wrong_clock_makes_anybody_older_than_they_are(life):
    """Over boots, restarts, corrections and whatever somebody sets: never back, never beyond the true time, and no
    second of a run is lost; with right clocks it is the true time."""
    machine, runs_s, right = Machine(), 0.0, True
    clock = machine.clock()
    for what, how in life:
        before_s = clock.now_s()
        match what:
            case "run":
                machine.pass_s(how)
                runs_s += how
            case "reboot":
                away_s, wrong_s = how
                anchor = clock.anchor()
                machine.reboot(away_s=away_s, shows_s=max(0.0, machine.true_s + away_s + wrong_s))
                clock = machine.clock(anchor)
            case "restart" | "set":
                anchor = clock.anchor()
                machine.wall_s = max(0.0, machine.true_s + how)
                clock = machine.clock(anchor) if what == "restart" else clock
            case "correct":
                machine.wall_s += how
        if what != "run":
            clock.anchor()
        right = right and (what == "run" or (what == "reboot" and how[1] == 0))
        assert before_s - 1e-3 <= clock.now_s()
        assert clock.now_s() <= machine.true_s + SLACK_S
        assert clock.now_s() >= FIRST_S + runs_s - 1e-3
        if right:
            assert clock.now_s() == pytest.approx(machine.true_s)
