"""An engine's life where there is no room for its process, and what is heard of one that is to go."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import PATIENCE_S
from running import wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting import status as roster
from edge_agent.engine.hosting.process import EngineProcess
from edge_agent.engine.hosting.residency import Fate, ResidencyVerdict
from edge_agent.engine.hosting.runner import EngineEvents, EngineRunner, Ruling
from edge_agent.engine.hosting.served import Served
from edge_agent.engine.hosting.state import EngineState
from edge_agent.engine.messages import ModelLimits, Ready
from edge_agent.engine.phase import Phase

LOAD = Ruling(ResidencyVerdict(Fate.LOAD), unloads="", rest_share=0.0, busy=False)


class Places:
    def prepare(self, reserved_bytes):
        return ModelSpec(Path("/absent"), "onnx", context_tokens=256, parallel=1, threads=1), None

    def fallback(self, spec):
        return None

    def works(self, spec, heard):
        pass


@pytest.fixture
def runner():
    served, told = Served("text", Places()), []
    events = EngineEvents()
    events.on_event.connect(lambda _model, event: told.append(event))
    events.on_up.connect(lambda *each: told.append(each))
    events.on_lost.connect(lambda *each: told.append(each))
    made = EngineRunner(served, EngineState(served.name), events=events, wake=threading.Event())
    made.told = told
    yield made
    made.stop()


def test_a_process_that_cannot_be_started_is_tried_again_later(runner, monkeypatch):
    """Nothing is left open; jobs go on waiting."""
    monkeypatch.setattr(sys, "executable", "/absent/python")
    fds = Path("/proc/self/fd")
    open_before = len(list(fds.iterdir()))
    runner.follow(LOAD, reserved_bytes=lambda: 0)
    status = runner.record.status()
    assert (status.phase, status.reason) == (
        Phase.DOWN,
        "no process could be started (No such file or directory)",
    )
    assert not runner.record.due
    assert len(list(fds.iterdir())) == open_before


def test_what_an_engine_says_that_is_gone_changes_nothing(runner):
    """It was ready just when it was let go."""
    runner.follow(LOAD, reserved_bytes=lambda: 0)
    process = runner.record.leave(Phase.UNLOADED, "makes room")
    try:
        ready = Ready(ModelLimits(context_tokens=1, parallel=1, images_per_prompt=0), 1.0, "onnx 1", "cpu")
        assert runner.record.serve(process, ready) is None
        assert runner.record.phase is Phase.UNLOADED
        assert not runner.told
    finally:
        process.kill()


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Starts an engine whose program is a script of the shell; `$4` is the number of its end of the socket."""

    def start(script, gone=lambda _engine: None):
        program = tmp_path / "python"
        program.write_text(f"#!/bin/bash\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        spec = ModelSpec(Path("/absent"), "onnx", context_tokens=256, parallel=1, threads=1)
        process = EngineProcess(spec, tell=lambda *_: None, gone=gone)
        process.listen()
        return process

    return start


@pytest.mark.parametrize("sent", [b"\0\0\0\2{]", b"\0\0\0\2[]", b'\0\0\0\x0e{"type":"Lie"}', b"\xff" * 8], ids=ascii)
def test_an_engine_whose_words_make_no_sense_is_ended_and_the_agent_goes_on(tmp_path, engine, sent):
    """They ended the thread that read them, and with it the agent."""
    (tmp_path / "words").write_bytes(sent)
    gone = threading.Event()
    process = engine(f'cat {tmp_path}/words >&"$4"\nexec sleep 60', gone=lambda _engine: gone.set())
    try:
        assert gone.wait(PATIENCE_S)
        assert process.exit_reason() == "SIGKILL"
    finally:
        process.kill()


def test_the_end_of_an_engine_waits_for_no_process_that_has_its_end_of_the_socket(tmp_path, engine):
    """What a library has started and left behind would hold up the thread that ends the engine, the main one."""
    left = tmp_path / "left"
    process = engine(f"sleep 600 &\necho $! > {left}.part\nmv {left}.part {left}\nexec sleep 600")
    wait_for(left.exists, "a process that stays behind")
    ending = threading.Thread(target=process.kill)
    ending.start()
    ending.join(PATIENCE_S)
    held_up = ending.is_alive()
    os.kill(int(left.read_text()), signal.SIGKILL)  # it is there to the last, and lets go of who waits for it
    ending.join(PATIENCE_S)
    assert not held_up


def test_a_model_that_its_engine_cannot_load_is_told_so_while_it_is_tried_again(runner):
    """Until it is loaded, or somebody asks for it anew; what may pass by itself is waited for, and what came before the
    engine was started is mended when it is started again."""
    spec = ModelSpec(Path("/absent"), "onnx", context_tokens=256, parallel=1, threads=1)
    record, process = runner.record, SimpleNamespace(spec=spec, ready=None, close=lambda _patience_s: None)

    def refusal():
        record.load(process, None, None)
        try:
            roster.resolve("text", [record.status()])
        except EdgeAgentError as error:
            return error.code, error.message
        return None

    record.load(process, None, None)
    record.gave_up(process, Code.MODEL_ERROR, "it is damaged")
    assert refusal() == (Code.MODEL_ERROR, "model: cannot be loaded: it is damaged")
    record.gave_up(process, Code.OUT_OF_MEMORY, "it is large")
    assert refusal() is None
    record.fail(Code.MODEL_MISSING, "it is not here")
    assert refusal() is None
    record.gave_up(process, Code.MODEL_ERROR, "it is damaged")
    record.clear_failed()
    record.retry()
    assert refusal() is None
    record.gave_up(process, Code.MODEL_ERROR, "it is damaged")
    assert refusal()
    record.serve(process, Ready(ModelLimits(64, 1), 1.0, "onnx 1", "cpu"))
    assert refusal() is None


def test_another_number_is_no_other_reason(runner):
    """Of a model that does not fit the free memory is another at each try: it is said once, and shown as it is now."""
    record = runner.record
    news = [record.fail(Code.NO_FIT, f"needs 2760 MiB and {free} MiB are free") for free in (1996, 1990, 2004)]
    assert news == [True, False, False]
    assert record.status().reason.endswith("2004 MiB are free")
    assert record.fail(Code.MODEL_ERROR, "it is damaged")
