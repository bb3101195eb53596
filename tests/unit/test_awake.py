"""The clock of time-outs stands still while the process does."""

import asyncio
import threading
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.awake import LAPSE_S, PULSE_S, Awake, result_awake, wait_awake
from edge_agent.base.heartbeat import STUCK_S, Heartbeat, stuck
from edge_agent.engine.openai.server import AwakeLoop

GAPS = st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=30)


@given(GAPS)
def test_no_step_of_it_is_longer_than_a_lapse_and_none_goes_back(gaps):
    """Whoever looks first after it was frozen, a judge or the pulse, and however long that was."""
    raw_s = 100.0
    clock = Awake(raw_s=lambda: raw_s)
    clock.pulse()
    told_s, awake_s = clock.now_s(), 100.0
    for gap_s, pulses in gaps:
        raw_s += gap_s
        before_s, told_s = told_s, clock.now_s()
        assert -1e-6 <= told_s - before_s <= LAPSE_S + 1e-6
        if pulses:
            clock.pulse()
            assert clock.now_s() == pytest.approx(told_s)
    assert told_s >= awake_s - 1e-6


def test_it_keeps_the_time_of_a_process_that_goes_on():
    raw_s = 0.0
    clock = Awake(raw_s=lambda: raw_s)
    for _ in range(1000):
        clock.pulse()
        raw_s += PULSE_S
    assert clock.now_s() == raw_s


def test_without_pulses_it_is_the_clock_it_is_made_of():
    assert Awake(raw_s=lambda: 1e9).now_s() == 1e9


def test_a_thread_that_was_frozen_with_its_judge_is_not_stuck():
    raw_s = 0.0
    clock = Awake(raw_s=lambda: raw_s)
    clock.pulse()
    beat = Heartbeat("store", now_s=clock.now_s)
    beat()
    raw_s += 1e6
    assert stuck([beat], now_s=clock.now_s()) == ()
    for _ in range(round(STUCK_S) + 1):
        clock.pulse()
        raw_s += PULSE_S
    assert stuck([beat], now_s=clock.now_s()) == ("store",)


def test_a_wait_that_was_frozen_goes_on_for_the_rest_of_its_time():
    """It came back from a wait of ten seconds after a thousand, in none of which anybody could do anything."""
    raw_s, asked = 0.0, []
    clock = Awake(raw_s=lambda: raw_s)
    clock.pulse()

    def wait(patience_s):
        nonlocal raw_s
        asked.append(patience_s)
        raw_s += 1000.0 if len(asked) == 1 else patience_s
        clock.pulse()
        return len(asked) == 3

    assert wait_awake(wait, 10.0, now_s=clock.now_s)
    assert asked == pytest.approx([10.0, 10.0 - LAPSE_S, 10.0 - 2 * LAPSE_S])
    asked.clear()
    assert not wait_awake(lambda patience_s: wait(patience_s) and False, 2.0, now_s=clock.now_s)


def test_the_outcome_of_something_is_waited_for_and_no_longer():
    future = Future()
    threading.Timer(0.01, future.set_result, ["done"]).start()
    assert result_awake(future, 60.0) == "done"
    with pytest.raises(TimeoutError):
        result_awake(Future(), 0.0)


def test_a_server_elsewhere_is_not_given_up_for_what_was_said_while_we_were_frozen():
    raw_s = 0.0
    clock = Awake(raw_s=lambda: raw_s)
    clock.pulse()
    loop = AwakeLoop(clock.now_s)

    async def hear():
        nonlocal raw_s
        async with asyncio.timeout(5.0):
            raw_s += 1000.0
            clock.pulse()
            for _ in range(3):
                await asyncio.sleep(0)
        async with asyncio.timeout(5.0):
            for _ in range(10):
                raw_s += PULSE_S
                clock.pulse()
                await asyncio.sleep(0)

    try:
        with pytest.raises(TimeoutError):
            loop.run_until_complete(hear())
        assert raw_s < 1010.0
    finally:
        loop.close()
