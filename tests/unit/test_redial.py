"""When and where a lost connection is tried again."""

import pytest

from edge_agent.mqtt.redial import (
    NEXT_ADDRESS_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    STEADY_S,
    TAKEN_OVER_MAX_S,
    TAKEN_OVER_MIN_S,
    Redial,
    backoff_s,
)


@pytest.mark.parametrize(("tries", "ceiling_s"), [(0, 1.0), (1, 2.0), (5, 32.0), (6, 60.0), (10**6, 60.0)])
def test_backoff_doubles_up_to_its_bound_and_spreads_over_the_upper_half(tries, ceiling_s):
    """Many agents that lose one broker do not all come back in the same moment."""
    shortest, middle, longest = (
        backoff_s(tries, first_s=RETRY_MIN_S, most_s=RETRY_MAX_S, chance=chance) for chance in (0.0, 0.5, 1.0)
    )
    assert (shortest, middle, longest) == (ceiling_s / 2, ceiling_s * 0.75, ceiling_s)


def test_each_address_has_its_turn_and_a_round_in_vain_is_followed_by_a_longer_pause():
    redial, tried = Redial(3), []
    for _ in range(7):
        wait_s = redial.lost(lived_s=0.0, chance=1.0)
        tried.append((redial.address, wait_s))
    soon = [(1, NEXT_ADDRESS_S), (2, NEXT_ADDRESS_S)]
    assert tried == [*soon, (0, RETRY_MIN_S), *soon, (0, 2 * RETRY_MIN_S), soon[0]]


def test_a_connection_that_lasted_begins_anew_at_the_first_address():
    redial = Redial(2)
    for _ in range(9):
        redial.lost(lived_s=STEADY_S - 1, chance=1.0)
    assert (redial.lost(lived_s=STEADY_S, chance=1.0), redial.address) == (RETRY_MIN_S, 0)


def test_another_agent_of_our_name_is_left_alone_longer_each_time_up_to_a_bound():
    redial = Redial(2)
    redial.lost(lived_s=0.0, chance=0.0)
    waits_s = [redial.taken_over(chance=0.0) for _ in range(9)]
    assert waits_s[:2] == [TAKEN_OVER_MIN_S, 2 * TAKEN_OVER_MIN_S]
    assert (waits_s[-1], redial.taken_over(chance=1.0)) == (TAKEN_OVER_MAX_S / 2, TAKEN_OVER_MAX_S)
    assert redial.address == 1
