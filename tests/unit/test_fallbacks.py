"""Where a model can run and what became of it there: which place is next, which is left alone, who is to blame."""

from pathlib import Path

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.blame import FailureLog, is_the_devices
from edge_agent.models.fallback import Fallbacks
from edge_agent.models.load import Placed
from edge_agent.models.quarantine import ASIDE_FIRST_S, ASIDE_MOST_S

NPU, GPU, CPU = (Placed(Path("/models/phi"), "openvino", device, variant="phi") for device in ("npu", "gpu", "cpu"))


class Bench:
    """Fallbacks, and the clock and memory of its machine."""

    def __init__(self, *places, **given):
        self.now_s = 0.0
        self.places = list(places)
        self.refused = set()
        self.changes = 0
        self.fallbacks = Fallbacks(
            "phi",
            places=lambda: self.places,
            load=self._load,
            changed=self._changed,
            now_s=lambda: self.now_s,
            **given,
        )

    def _load(self, place, _reserved_bytes):
        if place.device in self.refused:
            raise EdgeAgentError(Code.NO_FIT, f"memory is short for {place.device}")
        return ModelSpec(place.path, place.backend, 4096, 1, 1, place.device, variant=place.variant), None

    def _changed(self):
        self.changes += 1

    def next(self):
        """Prepare; return the spec."""
        return self.fallbacks.prepare(0)[0]

    def fail(self, reason="it died"):
        """Have the next place fail; return whether there is another."""
        return self.fallbacks.failed(self.next(), reason)

    def devices(self):
        return [each.device for each in self.fallbacks.set_aside()]


def test_a_place_that_failed_is_left_alone_and_the_next_one_stands_in():
    """With the reason, for health and results; everybody is told."""
    bench = Bench(NPU, GPU, CPU)
    assert bench.fallbacks.fallback(bench.next()) is None
    assert bench.fail("it hung")
    assert bench.next().device == "gpu"
    assert bench.fail("no numbers")
    spec = bench.next()
    assert (spec.device, bench.devices(), bench.changes) == ("cpu", ["npu", "gpu"], 2)
    fallback = bench.fallbacks.fallback(spec)
    assert (fallback.device, fallback.reason) == ("npu", "it hung")


def test_the_last_place_is_never_set_aside():
    """Nothing would be left; what becomes of its jobs is told by their strikes."""
    bench = Bench(NPU, CPU)
    assert bench.fail()
    assert not bench.fallbacks.spare(bench.next())
    assert not bench.fail()
    assert (bench.next().device, bench.devices()) == ("cpu", ["npu"])
    assert not Bench(CPU).fail()


def test_where_it_is_not_allowed_nothing_is_set_aside():
    bench = Bench(NPU, CPU, moves=False)
    assert not bench.fail()
    assert bench.next().device == "npu"


def test_after_its_wait_a_better_place_is_tried_again_and_waits_twice_as_long_if_it_fails():
    bench = Bench(NPU, CPU)
    waits_s = []
    for _ in range(8):
        bench.fail()
        cpu = bench.next()
        (aside,) = bench.fallbacks.set_aside()
        waits_s.append(aside.wait_s)
        bench.now_s += aside.wait_s - 1
        assert not bench.fallbacks.better(cpu)
        bench.now_s += 1
        assert bench.fallbacks.better(cpu)
        assert bench.next().device == "npu"
    assert waits_s[:3] == [ASIDE_FIRST_S, 2 * ASIDE_FIRST_S, 4 * ASIDE_FIRST_S]
    assert waits_s[-1] == ASIDE_MOST_S


def test_a_place_that_works_again_is_no_news_any_more():
    """It counts as new after working as long as it waited; before, it waits twice as long."""
    bench = Bench(NPU, CPU)
    bench.fail()
    bench.now_s += ASIDE_FIRST_S
    npu = bench.next()
    bench.fallbacks.works(npu, "Paris")
    assert (bench.devices(), bench.fallbacks.fallback(npu), bench.fallbacks.fallback(spec_of(CPU))) == ([], None, None)
    bench.now_s += ASIDE_FIRST_S - 1
    bench.fail()
    assert bench.fallbacks.set_aside()[0].wait_s == 2 * ASIDE_FIRST_S
    bench.now_s += 2 * ASIDE_FIRST_S
    bench.fallbacks.works(bench.next(), "")
    bench.now_s += 2 * ASIDE_FIRST_S + 1
    bench.fail()
    assert bench.fallbacks.set_aside()[0].wait_s == ASIDE_FIRST_S


def test_what_is_left_alone_is_used_when_memory_holds_nothing_else():
    """And is the last place then: no job moves for ever between it and one that does not fit."""
    bench = Bench(NPU, CPU)
    bench.fail()
    bench.refused = {"cpu"}
    npu = bench.next()
    assert npu.device == "npu"
    assert not bench.fallbacks.spare(npu)
    bench.refused = {"cpu", "npu"}
    with pytest.raises(EdgeAgentError, match="memory is short for cpu"):
        bench.next()


def test_a_better_place_that_does_not_fit_waits_longer():
    """Or the engine that stands in would be taken down for it again and again."""
    bench = Bench(NPU, CPU)
    bench.fail()
    bench.now_s += ASIDE_FIRST_S
    bench.refused = {"npu"}
    cpu = bench.next()
    assert cpu.device == "cpu"
    assert not bench.fallbacks.better(cpu)


def test_when_a_job_was_to_blame_its_places_are_tried_at_once():
    bench = Bench(NPU, CPU)
    bench.fail()
    cpu = bench.next()
    bench.fallbacks.reset_backoff()
    assert bench.fallbacks.better(cpu)
    bench.fail()
    assert bench.fallbacks.set_aside()[0].wait_s == ASIDE_FIRST_S


def test_what_is_heard_at_a_trial_is_told():
    heard = []
    bench = Bench(CPU, heard=lambda spec, beginning: heard.append((spec.device, beginning)))
    bench.fallbacks.works(bench.next(), "Paris")
    assert heard == [("cpu", "Paris")]


def spec_of(place):
    return ModelSpec(place.path, place.backend, 4096, 1, 1, place.device, variant=place.variant)


@pytest.mark.parametrize(
    ("code", "seen", "devices"),
    [
        (Code.ENGINE_DIED, {"lost": True}, True),
        (Code.OUT_OF_MEMORY, {"lost": True, "alone": False}, True),
        (Code.MODEL_ERROR, {"lost": True}, True),
        (Code.MODEL_ERROR, {"alone": False}, True),
        (Code.OUT_OF_MEMORY, {}, True),
        (Code.OUT_OF_MEMORY, {"alone": False}, False),
        (Code.PROMPT_TOO_LONG, {}, False),
        (Code.BAD_REQUEST, {}, False),
        (Code.IMAGE_MISSING, {}, False),
        (Code.ENGINE_DIED, {"lost": True, "strikes": 2}, False),
        (Code.ENGINE_DIED, {"lost": True, "fell_before": True}, False),
        (Code.MODEL_ERROR, {"strikes": 2}, False),
    ],
)
def test_whose_fault_it_is(code, seen, devices):
    assert is_the_devices(code, **{"lost": False, "alone": True, "strikes": 1, "fell_before": False} | seen) is devices


def test_of_so_many_jobs_only_it_is_remembered_where_they_failed():
    falls = FailureLog(most=2)
    falls.note(1, "npu")
    falls.note(1, "gpu")
    assert falls.of(1) == {"npu", "gpu"}
    falls.note(2, "npu")
    falls.note(3, "npu")
    assert (falls.of(1), falls.of(3)) == (frozenset(), {"npu"})


CLOUD = Placed(Path(), "openai", "upstream", variant="big", elsewhere=True)


def test_another_machine_stands_in_while_this_one_cannot_and_no_longer():
    """What did not fit here is tried again after a while, and what stands in says for whom."""
    bench = Bench(CPU, CLOUD)
    assert bench.next().device == "cpu"
    bench.refused = {"cpu"}
    there = bench.next()
    assert (there.device, bench.devices(), bench.changes) == ("upstream", ["cpu"], 1)
    assert bench.fallbacks.fallback(there).reason == "memory is short for cpu"
    assert not bench.fallbacks.better(there)
    bench.now_s += ASIDE_FIRST_S
    assert bench.fallbacks.better(there)
    assert bench.next().device == "upstream"
    assert not bench.fallbacks.better(there)
    bench.now_s += 2 * ASIDE_FIRST_S
    bench.refused = set()
    here = bench.next()
    bench.fallbacks.works(here, "")
    assert (here.device, bench.devices(), bench.fallbacks.fallback(here)) == ("cpu", [], None)


def test_another_device_stands_in_for_what_does_not_fit_without_setting_it_aside():
    """As long as nothing leaves the machine."""
    bench = Bench(GPU, CPU)
    bench.refused = {"gpu"}
    assert bench.next().device == "cpu"
    assert bench.devices() == []
