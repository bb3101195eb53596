"""What a device says against the processor's words: whether they can be had, and what becomes of the child asked."""

import sys
import threading
from dataclasses import replace

import pytest
from fakes import GIB, PATIENCE_S
from running import wait_for
from test_memory import FULL

from edge_agent.engine import witness
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.canary import unlike
from edge_agent.engine.messages import Canary
from edge_agent.engine.witness import DismissedError, Witness
from edge_agent.errors import Code, EdgeAgentError
from edge_agent.models import catalogue, references
from edge_agent.models.affordable import Affordable, affordable
from edge_agent.models.known import Known
from edge_agent.models.references import AGREES, IDLE, References

RICH = {"runs": True, "context_tokens": 1024, "room_bytes": 16 * GIB, "total_bytes": 24 * GIB}


@pytest.mark.parametrize(
    ("build", "seen", "reason"),
    [
        (FULL, {"runs": False}, "does not run on the processor"),
        (None, {}, "nobody knows how much memory this build takes"),
        (FULL, {"room_bytes": None}, "nobody knows how much memory is free"),
        (FULL, {"room_bytes": 4 * GIB}, "memory holds no "),
        (FULL, {"room_bytes": 5 * GIB, "total_bytes": 12 * GIB}, "10 % of the memory must stay free"),
    ],
)
def test_the_processors_words_are_not_had_at_any_price(build, seen, reason):
    assert reason in affordable(build, **RICH | seen).reason


def test_where_they_are_affordable_the_child_is_granted_what_one_short_lane_needs():
    found = affordable(FULL, **RICH)
    assert found.reason == ""
    assert 3 * GIB < found.limit_bytes < 5 * GIB
    assert affordable(FULL, **RICH | {"room_bytes": 6 * GIB, "total_bytes": 12 * GIB}) == Affordable(found.limit_bytes)


def test_beginnings_are_compared_as_at_a_trial():
    assert unlike("Hello", "Hi the", "Hi there") == ""
    assert unlike("Hello", "quite", "Hi").endswith("it began with 'quite'; on the processor it began with 'Hi'")


class Bench:
    """References whose machine is set by hand, for a model that is served on a device."""

    def __init__(self, folder, model, **given):
        self.busy, self.room_bytes = "", 16 * GIB
        self.differs, self.news = [], threading.Semaphore(0)
        self.spec = ModelSpec(model, "onnx", 256, 1, 1, "npu", variant="tiny", canary=Canary())
        self.known = Known(folder)
        self.references = References(
            known=self.known,
            catalogue=catalogue.read(),
            busy=lambda: self.busy,
            room_bytes=lambda: self.room_bytes,
            total_bytes=24 * GIB,
            differs=lambda *told: self.differs.append(told),
            changed=self.news.release,
            **given,
        )

    def heard(self, beginning):
        self.references.heard("ours", self.spec, beginning)

    def told(self, reason, **fields):
        """Wait until so much is said of the model."""

        def seen():
            now = self.references.compared()["ours"]
            return now.reason.startswith(reason) and now

        found = wait_for(seen, reason, PATIENCE_S)
        assert (found.variant, found.device) == ("tiny", "npu")
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.references.stop()


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(references, "LOOK_S", 0.02)
    monkeypatch.setattr(references, "ROOM_S", 0.02)
    monkeypatch.setattr(witness, "LOOK_S", 0.02)


@pytest.mark.engine
def test_in_an_idle_moment_with_room_a_device_is_held_against_the_processor(tmp_path, tiny_model):
    """Once for a build: it is kept, and the next trial knows it."""
    with Bench(tmp_path, tiny_model) as bench:
        bench.room_bytes = 0
        bench.busy = "waits for good weather"
        bench.heard("the the the the")
        assert not bench.told("memory holds no").used
        bench.room_bytes = 16 * GIB
        bench.told("waits for good weather")
        bench.busy = ""
        assert bench.told("asked 'Hello' it began with 'the the the the'").used
        ((model, spec, reason),) = wait_for(lambda: bench.differs, "the verdict")
        assert (model, spec, reason) == ("ours", bench.spec, bench.references.compared()["ours"].reason)
        assert bench.references.held_bytes == 0
        reference = bench.known.canary(tiny_model, "onnx", None).reference
        assert reference
        bench.spec = replace(bench.spec, canary=Canary(reference=reference))
        bench.heard(reference)
        assert bench.told(AGREES).used
        assert len(bench.differs) == 1


@pytest.mark.engine
def test_what_is_to_be_loaded_has_the_memory_at_once_and_the_question_waits(tmp_path, tiny_model, monkeypatch):
    """The child is gone when `make_way` returns; it is asked again in the next idle moment."""
    begun = threading.Semaphore(0)
    listen = witness.EngineProcess.listen

    def listening(process):
        begun.release()
        children.append(process)
        if len(children) > 1:
            listen(process)
        else:
            process._in.start()  # it is told nothing, and so says nothing
            process._out = threading.Thread(target=lambda: None)
            process._out.start()

    children = []
    monkeypatch.setattr(witness.EngineProcess, "listen", listening)
    with Bench(tmp_path, tiny_model) as bench:
        bench.heard("the the the the")
        assert begun.acquire(timeout=PATIENCE_S)
        wait_for(lambda: bench.references.held_bytes > 2**20, "the child to hold memory")
        bench.references.make_way()
        assert children[0].exit_reason() == "SIGKILL"
        assert bench.references.held_bytes == 0
        bench.told("asked 'Hello'")
        assert len(children) == 2


@pytest.mark.engine
def test_a_child_over_its_memory_or_time_is_ended_and_that_is_said(tmp_path, tiny_model, monkeypatch):
    """It is not asked again, and the device goes on."""
    monkeypatch.setattr(references, "affordable", lambda *_build, **_seen: Affordable(2**20))
    with Bench(tmp_path, tiny_model) as bench:
        bench.heard("the the the the")
        assert bench.told("on the processor: it took more than 1 MiB").used is False
        assert not bench.differs
    spec = replace(bench.spec, device="cpu")
    with pytest.raises(EdgeAgentError, match="did not answer within 0 s") as late:
        Witness(spec, limit_bytes=GIB, bound_s=0).ask(lambda: None)
    assert late.value.code is Code.TIMEOUT
    dismissed = Witness(spec, limit_bytes=GIB)
    dismissed.dismiss(0)
    with pytest.raises(DismissedError):
        dismissed.ask(lambda: None)
    monkeypatch.setattr(sys, "executable", "/absent/python")
    with pytest.raises(EdgeAgentError, match="no process could be started"):
        Witness(spec, limit_bytes=GIB).ask(lambda: None)


def test_a_child_that_hangs_on_its_way_out_is_ended_and_that_is_said(tmp_path, monkeypatch):
    """It has closed its end of the socket and lives on: waiting for how it ended would take down the agent."""
    hangs = tmp_path / "python"
    hangs.write_text(f"#!{sys.executable}\nimport os, signal, sys\nos.close(int(sys.argv[4]))\nsignal.pause()\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hangs))
    monkeypatch.setattr(witness, "EXIT_S", 0.1)
    with pytest.raises(EdgeAgentError, match=r"the engine ended by itself \(SIGKILL\)") as ended:
        Witness(ModelSpec(tmp_path, "onnx", 256, 1, 1), limit_bytes=GIB).ask(lambda: None)
    assert ended.value.code is Code.ENGINE_DIED


def test_on_the_processor_its_own_words_are_kept_and_nothing_is_compared(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    bench = Bench(tmp_path, folder)
    bench.busy = IDLE
    with bench:
        bench.heard("the")
        bench.spec = replace(bench.spec, device="cpu")
        bench.heard("Hi")
        assert bench.references.compared() == {}
        assert bench.known.canary(folder, "onnx", None).reference == "Hi"
