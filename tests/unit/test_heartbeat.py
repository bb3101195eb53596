"""When a thread counts as stuck."""

from edge_agent.base.heartbeat import STUCK_S, Heartbeat, stuck


def test_a_thread_is_stuck_when_its_turn_does_not_end():
    now_s = 100.0
    beat = Heartbeat("store", now_s=lambda: now_s)
    beat()
    assert stuck([beat], now_s=now_s + STUCK_S) == ()
    assert stuck([beat], now_s=now_s + STUCK_S + 1) == ("store",)


def test_a_thread_that_waits_idly_is_not():
    now_s = 100.0
    waiting, working = Heartbeat("outbox", now_s=lambda: now_s), Heartbeat("store", now_s=lambda: now_s)
    waiting(3600.0)
    working()
    assert stuck([waiting, working], now_s=now_s + 3600) == ("store",)
    assert stuck([waiting, working], now_s=now_s + 3601 + STUCK_S) == ("outbox", "store")


def test_a_thread_that_has_not_begun_or_has_ended_is_not():
    beat = Heartbeat("mqtt", now_s=lambda: 0.0)
    assert stuck([beat], now_s=1e9) == ()
    beat()
    beat.over()
    assert stuck([beat], now_s=1e9) == ()
