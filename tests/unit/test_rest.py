"""How an engine child rests between its steps."""

import threading

import pytest

from edge_agent.engine.child import REST_MOST_S, serve
from edge_agent.engine.messages import Close, Generation, JobId, Rest, Start, Text, Turn

JOB = JobId("1.1")
START = Start(Generation(JOB, (Turn("user", "Hello"),), 9))


class SlowModel:
    """Takes a while for each step."""

    def __init__(self, step_s):
        self.step_s, self.started = step_s, False

    def start(self, _generation):
        self.started = True

    def step(self):
        if self.started:
            threading.Event().wait(self.step_s)
            yield Text(JOB, "a", 1)


class Script:
    """Gives the child its commands, one list a round, and keeps how long it would have rested."""

    def __init__(self, *rounds):
        self.rounds, self.rests = list(rounds), []

    def send(self, _message):
        pass

    def receive(self, *, wait, rest_s=0.0):
        self.rests.append(None if wait else rest_s)
        return self.rounds.pop(0)


def test_a_rest_lasts_its_share_of_the_step_and_is_called_off():
    """At a half it is as long as the step before it; without work there is nothing to rest from."""
    script = Script([START], [Rest(0.5)], [], [Rest(0.0)], [Close()])
    serve(SlowModel(0.01), script)
    idle, before, half, again, after = script.rests
    assert (idle, before, after) == (None, 0.0, 0.0)
    assert half >= 0.01
    assert again >= 0.01


def test_a_rest_is_bounded_so_that_the_engine_is_not_taken_for_dead():
    script = Script([START], [Rest(0.9999)], [Close()])
    serve(SlowModel(0.01), script)
    assert script.rests[-1] == pytest.approx(REST_MOST_S)
