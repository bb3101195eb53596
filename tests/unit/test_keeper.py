"""An engine's life where there is no room for its process, and what is heard of one that is to go."""

import sys
from pathlib import Path

import pytest

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.keeper import Keeper, Listener, Ruling
from edge_agent.engine.life import Fate, Verdict
from edge_agent.engine.messages import Limits, Ready
from edge_agent.engine.plan import Phase
from edge_agent.engine.record import Record
from edge_agent.engine.served import Served

LOAD = Ruling(Verdict(Fate.LOAD), unloads="", rest_share=0.0, busy=False)


class Places:
    def prepare(self, reserved_bytes):
        return ModelSpec(Path("/absent"), "onnx", context_tokens=256, parallel=1, threads=1), None

    def fallback(self, spec):
        return None

    def works(self, spec, heard):
        pass


@pytest.fixture
def keeper():
    served, told = Served("text", Places()), []
    listener = Listener(event=told.append, up=lambda *each: told.append(each), lost=lambda *each: told.append(each))
    made = Keeper(served, Record(served), listener=listener, wake=lambda: None)
    made.told = told
    yield made
    made.stop()


def test_a_process_that_cannot_be_started_is_tried_again_later(keeper, monkeypatch):
    """Nothing is left open; jobs go on waiting."""
    monkeypatch.setattr(sys, "executable", "/absent/python")
    fds = Path("/proc/self/fd")
    open_before = len(list(fds.iterdir()))
    keeper.follow(LOAD, reserved_bytes=lambda: 0)
    status = keeper.record.status(pinned=False)
    assert (status.phase, status.reason) == (
        Phase.DOWN,
        "no process could be started (No such file or directory)",
    )
    assert not keeper.record.due
    assert len(list(fds.iterdir())) == open_before


def test_what_an_engine_says_that_is_gone_changes_nothing(keeper):
    """It was ready just when it was let go."""
    keeper.follow(LOAD, reserved_bytes=lambda: 0)
    process = keeper.record.leave(Phase.UNLOADED, "makes room")
    try:
        ready = Ready(Limits(context_tokens=1, parallel=1, images_per_prompt=0), 1.0, "onnx 1", "cpu")
        assert keeper.record.serve(process, ready) is None
        assert keeper.record.phase is Phase.UNLOADED
        assert not keeper.told
    finally:
        process.kill()
