"""How long a broker may answer nothing: a while, and only that time counts in which it owes an answer."""

import pytest
from fakes import Time

from edge_agent.mqtt.silence import SILENT_S, Silence


@pytest.mark.parametrize(("keepalive_s", "bound_s"), [(20, SILENT_S), (3600, 7200.0)])
def test_it_may_last_a_while_and_no_less_than_the_link_may_be_silent(keepalive_s, bound_s):
    clock = Time()
    silence = Silence(keepalive_s=keepalive_s, now_s=clock.now_s)
    clock.pass_s(bound_s)
    assert not silence.too_long(owed=False)
    clock.pass_s(bound_s - 1)
    assert not silence.too_long(owed=True)
    silence.begin()
    clock.pass_s(bound_s - 1)
    assert not silence.too_long(owed=True)
    clock.pass_s(1)
    assert silence.too_long(owed=True)
    silence.begin()
    assert not silence.too_long(owed=True)
