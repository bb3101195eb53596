"""The backend for Intel's NPUs, on the processor; what every backend promises is in the contract suite."""

import threading
from itertools import count

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Failed, Finished, FinishReason, Generation, Guide, GuideKind, JobId, Text, Turn

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def npu(openvino_genai):
    """The module, imported as the engine does."""
    backend.find("openvino", "npu")
    from edge_agent.engine.openvino import npu as openvino_npu

    return openvino_npu


@pytest.fixture(scope="module")
def model(npu, tiny_openvino):
    """The tiny model, used by one test after the other."""
    loaded = npu.load(ModelSpec(tiny_openvino, "openvino", 4096, 1, threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def ask():
    numbers = count(1)
    return lambda text="is the pump on?", max_tokens=24, **options: Generation(
        JobId(f"{next(numbers)}.1"), (Turn("user", text),), max_tokens, **options
    )


def drive(model, generation):
    """Run one to its end; return its text and its end."""
    model.start(generation)
    return drive_on(model)


def drive_on(model):
    text = ""
    for _ in range(500):
        for event in model.step():
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, Finished | Failed):
                return text, event
    raise AssertionError("it did not end")


def test_it_is_the_backend_for_that_device_only(npu):
    """The others go on with the pipeline of continuous batching."""
    found = {device: backend.find("openvino", device).__wrapped__ for device in ("npu", "gpu", "cpu")}
    assert found["npu"] is npu.load
    assert found["gpu"] is found["cpu"] is not npu.load


@pytest.mark.parametrize(("context_tokens", "prompt_tokens"), [(4096, 4096), (1000, 1024), (64, 64)])
def test_an_npu_is_compiled_for_the_whole_context(npu, tmp_path, context_tokens, prompt_tokens):
    """Nothing of the processor's is said to it; settings of a decision or a calibration win."""
    spec = ModelSpec(tmp_path, "openvino", 4096, 1, threads=3, device="npu", options={"GENERATE_HINT": "BEST_PERF"})
    assert npu.properties(spec, context_tokens) == {
        "MAX_PROMPT_LEN": prompt_tokens,
        "MIN_RESPONSE_LEN": 128,
        "GENERATE_HINT": "BEST_PERF",
    }


def test_without_an_npu_it_says_so(npu, tiny_openvino):
    """A clear sentence, no crash. The library is asked for the device; nothing falls back to the processor."""
    with pytest.raises(EdgeAgentError, match="cannot be loaded") as raised:
        npu.load(ModelSpec(tiny_openvino, "openvino", 512, 1, threads=1, device="npu"))
    assert raised.value.code is Code.MODEL_ERROR


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_a_guided_text_keeps_to_its_guide(model, ask, options):
    """Its pipeline takes guides as the other does."""
    text, end = drive(model, ask(max_tokens=60, guide=Guide(GuideKind.REGEX, "(yes|no)"), **options))
    assert text in {"yes", "no"}
    assert end.reason is FinishReason.STOP


def test_a_guide_that_cannot_be_compiled_is_refused_before_anything_is_computed(model, ask):
    with pytest.raises(EdgeAgentError, match=r"^response_format: ") as raised:
        model.start(ask(guide=Guide(GuideKind.REGEX, "(yes|no")))
    assert raised.value.code is Code.BAD_REQUEST
    assert not list(model.step())


def test_what_comes_meanwhile_waits(model, ask):
    """One after the other, each with the text it has alone; a cancel of one that waits lets the first go on."""
    alone, _ = drive(model, ask())
    first, canceled, last = ask(), ask("another"), ask()
    for generation in (first, canceled, last):
        model.start(generation)
    list(model.step())
    assert [event.reason for event in model.cancel(canceled.job_id)] == [FinishReason.CANCELED]
    text, end = drive_on(model)
    assert (end.job_id, alone.endswith(text)) == (first.job_id, True)
    assert drive_on(model)[0] == alone


def test_an_error_of_the_library_ends_that_answer_only(model, ask, monkeypatch):
    """Raised in its thread, told as this job's failure; the next is answered."""

    def broken(*_):
        raise RuntimeError("Exception from a driver:\nZE_RESULT_ERROR_DEVICE_LOST")

    with monkeypatch.context() as patched:
        patched.setattr(model, "_pipeline", type("Broken", (), {"generate": staticmethod(broken)}))
        _, end = drive(model, ask())
    assert (end.code, "DEVICE_LOST" in end.message) == (Code.MODEL_ERROR, True)
    assert isinstance(drive(model, ask())[1], Finished)


def test_an_answer_that_the_library_cuts_ends_with_length(model, ask, monkeypatch):
    """It does so, without an error, when its memory for keys and values is full."""

    def short(_prompt, _config, streamer):
        streamer.write([300])

    with monkeypatch.context() as patched:
        patched.setattr(model, "_pipeline", type("Short", (), {"generate": staticmethod(short)}))
        _, end = drive(model, ask())
    assert (end.reason, end.usage.completion_tokens) == (FinishReason.LENGTH, 1)


def test_no_thread_is_left(model, npu, tiny_openvino, ask):
    """Neither after an end, nor a cancel, nor when the model is closed over an answer."""

    def answering():
        return [each.name for each in threading.enumerate() if each.name == "openvino-answer"]

    drive(model, ask())
    model.start(canceled := ask())
    list(model.step())
    assert len(answering()) == 1
    list(model.cancel(canceled.job_id))
    assert not answering()
    other = npu.load(ModelSpec(tiny_openvino, "openvino", 512, 1, threads=1))
    other.start(ask())
    list(other.step())
    other.close()
    assert not answering()
