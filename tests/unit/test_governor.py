"""How far the agent holds back, over time: traces of machines, and each cause alone."""

from dataclasses import replace

import pytest

from edge_agent.health.governor import (
    CALM_STEPS,
    Cause,
    MachineView,
    Policy,
    RestraintLevel,
    govern,
    level_of,
    reasons,
    strains,
)
from hardware.heat import Heat, Sensor
from hardware.power import Battery, Power
from hardware.pressure import Pressure, Stall
from hardware.readings import Readings
from hardware.usage import Usage

GIB = 2**30
POLICY = Policy(step_s=10.0, disk_free_bytes=100)
NONE = Readings(
    at_s=0.0,
    heat=Heat((), (), None),
    power=Power((), (), (), None, None),
    pressure=Pressure(None, None, None, None, None),
    usage=Usage(None, None, None, None, None, None, ()),
)
FREE, FEWER, NO_POOLS, PAUSES, UNLOADED = RestraintLevel


def pi(celsius):
    """A Raspberry Pi 5: its firmware slows down from 80 °C, its kernel ends it at 110 °C."""
    return replace(NONE, heat=Heat((Sensor("cpu-thermal", celsius, passive_c=80.0, critical_c=110.0),), (), None))


def battery(percent, *, mains=False):
    return replace(NONE, power=Power((), (), (Battery("BAT0", percent, not mains, 9.0, None),), mains, None))


def memory(available_gib, stall=0.0):
    return replace(
        NONE,
        pressure=replace(NONE.pressure, memory=Stall(stall, None)),
        usage=replace(NONE.usage, available_bytes=int(available_gib * GIB)),
    )


class Trace:
    """A governor and the time."""

    def __init__(self, policy=POLICY):
        self.policy, self.state, self.now_s, self.steps = policy, {}, 0.0, []

    def sees(self, seen, *, for_s=0.0, every_s=5.0, total=16 * GIB, disk=None, reload_bytes=0):
        """Look now, then every few seconds for a time; return the level at the end."""
        end_s = self.now_s + for_s
        while True:
            view = MachineView(seen, total, disk, reload_bytes)
            self.state, steps = govern(self.state, view, policy=self.policy, now_s=self.now_s)
            self.steps += steps
            if self.now_s >= end_s:
                return level_of(self.state)
            self.now_s += every_s

    @property
    def way(self):
        return [(step.before, step.after) for step in self.steps]


def test_a_pi_that_heats_up_is_held_back_step_by_step_and_let_go_in_reverse():
    """As long as each step leaves it hot the next follows; 110 °C is far, so it is never unloaded."""
    trace = Trace()
    assert trace.sees(pi(74.9), for_s=60) is FREE
    assert trace.sees(pi(75.1)) is FEWER
    assert trace.sees(pi(76.0), for_s=5) is FEWER  # a step gets its time
    assert trace.sees(pi(77.0), for_s=5) is NO_POOLS
    assert trace.sees(pi(78.0), for_s=60) is PAUSES
    assert trace.sees(pi(72.0), for_s=300) is PAUSES  # neither hot nor cool
    assert trace.sees(pi(60.0), for_s=CALM_STEPS * 10 - 5) is PAUSES
    assert trace.sees(pi(60.0), for_s=5) is NO_POOLS
    assert trace.sees(pi(60.0), for_s=2 * CALM_STEPS * 10) is FREE
    assert trace.way == [
        (FREE, FEWER),
        (FEWER, NO_POOLS),
        (NO_POOLS, PAUSES),
        (PAUSES, NO_POOLS),
        (NO_POOLS, FEWER),
        (FEWER, FREE),
    ]
    assert trace.steps[0].reason == "cpu-thermal is at 75 °C, its limit is 80 °C"


def test_a_pi_that_heats_up_again_while_it_is_let_go_is_held_back_at_the_next_look():
    trace = Trace()
    trace.sees(pi(79.0), for_s=60)
    assert trace.sees(pi(60.0), for_s=30) is NO_POOLS
    trace.now_s += 10
    assert trace.sees(pi(79.0)) is PAUSES


def test_next_to_the_end_of_the_machine_everything_goes_at_once():
    trace = Trace()
    assert trace.sees(pi(107.5)) is UNLOADED
    assert trace.steps[0].reason == "cpu-thermal is at 108 °C, the machine ends at 110 °C"


def test_a_heat_that_flickers_around_the_margin_moves_nothing_more():
    """Hysteresis: between strain and calm the level stays, however often the edge is crossed."""
    trace = Trace()
    for _ in range(50):
        trace.sees(pi(75.1))
        trace.sees(pi(74.5), for_s=1, every_s=1.0)
        trace.now_s += 1
    assert all(after > before for before, after in trace.way)
    assert len(trace.way) == 3


def test_a_laptop_unplugged_leaves_pools_then_pauses_then_unloads_and_comes_back_when_plugged_in():
    trace = Trace()
    assert trace.sees(battery(95.0, mains=True), for_s=60) is FREE
    assert trace.sees(battery(90.0)) is NO_POOLS
    assert trace.sees(battery(21.0), for_s=3600) is NO_POOLS
    assert trace.sees(battery(20.0)) is PAUSES
    assert trace.sees(battery(10.0)) is UNLOADED
    assert trace.steps[-1].reason == "the machine runs on its battery, 10 % is left"
    assert trace.sees(battery(11.0, mains=True)) is UNLOADED
    assert trace.sees(battery(12.0, mains=True), for_s=CALM_STEPS * 10) is PAUSES
    assert trace.sees(battery(15.0, mains=True), for_s=3 * CALM_STEPS * 10) is FREE


def test_a_leaking_neighbour_takes_the_memory_until_the_engine_is_given_up():
    """And it is not loaded again into what it has just freed, but when there is room for it."""
    trace = Trace()
    assert trace.sees(memory(4.0), for_s=60) is FREE
    assert trace.sees(memory(0.6)) is FEWER
    assert trace.sees(memory(0.5), for_s=20) is PAUSES
    assert trace.sees(memory(0.4), for_s=10) is UNLOADED
    assert trace.sees(memory(3.4), for_s=600, reload_bytes=3 * GIB) is UNLOADED
    assert trace.sees(memory(5.0), for_s=CALM_STEPS * 10, reload_bytes=3 * GIB) is PAUSES
    assert trace.sees(memory(2.0), for_s=3 * CALM_STEPS * 10) is FREE


def test_a_neighbour_that_leaks_fast_is_not_waited_for():
    assert Trace().sees(memory(0.3)) is UNLOADED


def test_waiting_for_memory_counts_though_some_is_free():
    """As in a control group with a limit of its own, whose machine has plenty."""
    trace = Trace()
    own = replace(NONE, pressure=replace(NONE.pressure, own_memory=Stall(12.0, 3.0)))
    assert trace.sees(own, total=None) is FEWER
    assert trace.steps[0].reason == "12 % of the time is spent waiting for memory"
    assert trace.sees(replace(own, pressure=replace(own.pressure, own_memory=Stall(2.0, 0.0))), for_s=30) is FREE


def test_a_supply_that_gives_way():
    trace = Trace()
    weak = replace(NONE, power=Power((), (), (), None, undervoltage=True))
    assert trace.sees(weak) is FEWER
    assert trace.sees(weak, for_s=60) is PAUSES
    assert trace.sees(NONE, for_s=120) is FREE


def test_a_disk_nearly_full_ends_foreign_jobs():
    trace = Trace()
    assert trace.sees(NONE, disk=399) is NO_POOLS
    assert trace.sees(NONE, disk=799, for_s=300) is NO_POOLS
    assert trace.sees(NONE, disk=800, for_s=60) is FREE


def test_the_worst_cause_decides_and_each_says_why():
    trace = Trace()
    seen = replace(battery(50.0), heat=pi(79.0).heat)
    assert trace.sees(seen) is NO_POOLS
    assert {cause: held.level for cause, held in trace.state.items()} == {
        Cause.HEAT: FEWER,
        Cause.MEMORY: FREE,
        Cause.POWER: NO_POOLS,
        Cause.DISK: FREE,
    }
    assert reasons(trace.state) == (
        "fewer lanes: cpu-thermal is at 79 °C, its limit is 80 °C",
        "out of the pools: the machine runs on its battery",
    )


@pytest.mark.parametrize("held", [pi(79.0), battery(5.0), memory(0.1)])
def test_a_machine_whose_readings_vanish_is_let_go(held):
    trace = Trace()
    trace.sees(held, for_s=60)
    assert trace.sees(NONE, for_s=5 * CALM_STEPS * 10) is FREE


def test_a_machine_that_shows_nothing_is_never_held_back():
    trace = Trace()
    assert trace.sees(NONE, for_s=600, total=None) is FREE
    assert trace.steps == []


def strain(cause, seen, *, total=16 * GIB, disk=None, reload_bytes=0):
    """What one cause asks for at this moment."""
    found = strains(MachineView(seen, total, disk, reload_bytes), POLICY)
    return next(each for each in found if each.cause is cause)


def sensors(*each):
    return replace(
        NONE, heat=Heat(tuple(Sensor(name, at, passive_c=80.0, critical_c=end) for name, at, end in each), (), None)
    )


@pytest.mark.parametrize(
    ("cause", "seen", "given", "level", "at_once", "calm"),
    [
        (Cause.HEAT, pi(75.0), {}, PAUSES, False, False),
        (Cause.HEAT, pi(74.9), {}, FREE, False, False),
        (Cause.HEAT, pi(70.1), {}, FREE, False, False),
        (Cause.HEAT, pi(70.0), {}, FREE, False, True),
        (Cause.HEAT, pi(80.0), {}, PAUSES, False, False),
        (Cause.HEAT, pi(106.9), {}, PAUSES, False, False),
        (Cause.HEAT, pi(107.0), {}, UNLOADED, True, False),
        (Cause.MEMORY, memory(0.32), {}, UNLOADED, True, False),
        (Cause.MEMORY, memory(0.33), {}, UNLOADED, False, False),
        (Cause.MEMORY, memory(0.64), {}, UNLOADED, False, False),
        (Cause.MEMORY, memory(0.65), {}, FREE, False, False),
        (Cause.MEMORY, memory(1.27), {}, FREE, False, False),
        (Cause.MEMORY, memory(1.29), {}, FREE, False, True),
        (Cause.MEMORY, memory(9, stall=10.0), {}, UNLOADED, False, False),
        (Cause.MEMORY, memory(9, stall=9.9), {}, FREE, False, False),
        (Cause.MEMORY, memory(9, stall=2.5), {}, FREE, False, True),
        (Cause.MEMORY, memory(9, stall=2.6), {}, FREE, False, False),
        (Cause.MEMORY, memory(4), {"reload_bytes": 2 * GIB}, FREE, False, True),
        (Cause.MEMORY, memory(3.2), {"reload_bytes": 2 * GIB}, FREE, False, False),
        (Cause.MEMORY, memory(0.1), {"total": None}, FREE, False, True),
        (Cause.POWER, battery(21.0), {}, NO_POOLS, True, False),
        (Cause.POWER, battery(20.0), {}, PAUSES, True, False),
        (Cause.POWER, battery(10.1), {}, PAUSES, True, False),
        (Cause.POWER, battery(10.0), {}, UNLOADED, True, False),
        (Cause.POWER, battery(5.0, mains=True), {}, FREE, False, True),
        (Cause.DISK, NONE, {"disk": 399}, NO_POOLS, True, False),
        (Cause.DISK, NONE, {"disk": 400}, FREE, False, False),
        (Cause.DISK, NONE, {"disk": 799}, FREE, False, False),
        (Cause.DISK, NONE, {"disk": 800}, FREE, False, True),
        (Cause.DISK, NONE, {"disk": None}, FREE, False, True),
    ],
)
def test_what_each_cause_asks_for_at_its_edges(cause, seen, given, level, at_once, calm):
    found = strain(cause, seen, **given)
    assert (found.most, found.at_once, found.calm) == (level, at_once, calm)


@pytest.mark.parametrize(
    ("cause", "seen", "reason"),
    [
        (Cause.HEAT, pi(76.4), "cpu-thermal is at 76 °C, its limit is 80 °C"),
        (Cause.HEAT, pi(108.0), "cpu-thermal is at 108 °C, the machine ends at 110 °C"),
        (Cause.HEAT, sensors(("cool", 40.0, 110.0), ("hot", 79.0, 110.0)), "hot is at 79 °C, its limit is 80 °C"),
        (Cause.HEAT, sensors(("a", 40.0, 90.0), ("b", 79.0, 81.0)), "b is at 79 °C, the machine ends at 81 °C"),
        (Cause.MEMORY, memory(0.32), "2 % of the memory is free"),
        (Cause.MEMORY, memory(0.6), "4 % of the memory is free"),
        (Cause.MEMORY, memory(9, stall=12.0), "12 % of the time is spent waiting for memory"),
    ],
)
def test_the_reason_names_what_was_read(cause, seen, reason):
    assert strain(cause, seen).reason == reason
