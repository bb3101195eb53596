"""The queue's clock, on machines that reboot, sleep and change their wall clock."""

import pytest
from fakes import Time

from edge_agent.jobs.clock import Clock, boot_id


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
