"""An engine's life where there is no room for its process, and what is heard of one that is to go."""

import sys
import threading
from pathlib import Path

import pytest
from fakes import PATIENCE_S

from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.keeper import Keeper, Listener, Ruling
from edge_agent.engine.life import Fate, Verdict
from edge_agent.engine.messages import Limits, Ready
from edge_agent.engine.plan import Phase
from edge_agent.engine.process import EngineProcess
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


@pytest.mark.parametrize("sent", [b"\0\0\0\2{]", b"\0\0\0\2[]", b'\0\0\0\x0e{"type":"Lie"}', b"\xff" * 8], ids=ascii)
def test_an_engine_whose_words_make_no_sense_is_ended_and_the_agent_goes_on(tmp_path, monkeypatch, sent):
    """They ended the thread that read them, and with it the agent."""
    (tmp_path / "words").write_bytes(sent)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/bash\ncat {tmp_path}/words >&"$4"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    gone = threading.Event()
    spec = ModelSpec(Path("/absent"), "onnx", context_tokens=256, parallel=1, threads=1)
    process = EngineProcess(spec, tell=lambda *_: None, gone=lambda _engine: gone.set())
    process.listen()
    try:
        assert gone.wait(PATIENCE_S)
        assert process.exit_reason() == "SIGKILL"
    finally:
        process.kill()
