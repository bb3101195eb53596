"""What is asked of a loaded model, and what is thought of what it said; with a real model and faults in it."""

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Canary, ModelLimits, Text, Trying
from edge_agent.engine.selftest import canary, rehearsal
from edge_agent.engine.selftest.canary import (
    BUDGET_S,
    LONG_TOKENS_MIN,
    TOKEN_S_MAX,
    CanaryVerdict,
    Heard,
    NextQuestion,
    Purpose,
    follow,
)
from edge_agent.engine.selftest.rehearsal import Rehearsal

PARIS = Canary("Capital?", ("Paris",), after_long=True)
PLAIN = Canary()
SOUND = CanaryVerdict(sound=True)


def first(text="Paris.", **heard):
    fields = {"beginning": text[:4], "tokens": 2, "prompt_tokens": 20, "prompt_s": 0.1, "took_s": 0.2}
    return Heard(Purpose.FIRST, text, **fields | heard)


def again(text="Paris.", **heard):
    return Heard(Purpose.AGAIN, text, **{"beginning": text[:4], "tokens": 2, "took_s": 0.2} | heard)


def long(text="Paris.", **heard):
    return Heard(Purpose.LONG, text, **{"tokens": 2, "prompt_tokens": 4000, "took_s": 9.0} | heard)


@pytest.mark.parametrize(
    ("device", "asked", "heard", "part"),
    [
        ("cpu", PARIS, [], Purpose.FIRST),
        ("cpu", PARIS, [first()], Purpose.AGAIN),
        ("cpu", PARIS, [first(), again()], None),
        ("cpu", PARIS, [first(), again("Paris!")], Purpose.AGAIN),
        ("cpu", PARIS, [first(), again("Paris!"), again("Paris!")], None),
        ("cpu", PARIS, [first(took_s=BUDGET_S + 1)], None),
        ("npu", PARIS, [first(), again()], Purpose.LONG),
        ("npu", PLAIN, [first(), again()], Purpose.LONG),
        ("npu", PARIS, [first(), again(), long()], None),
        # a device too slow for a long prompt in time is not asked one
        ("npu", PARIS, [first(prompt_s=20 * BUDGET_S / LONG_TOKENS_MIN * 1.1), again()], None),
    ],
)
def test_a_sound_model_is_asked_twice_and_elsewhere_at_length(device, asked, heard, part):
    """Once more when the answers differ, for a kept prompt is another computation; nothing that takes too long."""
    step = follow(asked, heard, device=device)
    assert step == SOUND if part is None else isinstance(step, NextQuestion)
    assert part is None or step.part is part


@pytest.mark.parametrize(
    ("device", "asked", "heard", "reason"),
    [
        ("cpu", PLAIN, [first(fault="the model computes no numbers")], "does not answer: the model computes no"),
        ("cpu", PARIS, [first("the the the")], "asked 'Capital?' it said 'the the the', not 'Paris'"),
        ("cpu", PARIS, [first("Paris \x07\ufffd")], "which nobody can read"),
        ("cpu", PLAIN, [first("a"), again("b"), again("c")], "in three ways"),
        ("npu", Canary(reference="Paris"), [first("Berlin")], "on the processor it began with 'Paris'"),
        ("npu", Canary(reference="Paris"), [first("")], "on the processor it began with 'Paris'"),
        ("npu", PLAIN, [first(), again(took_s=2.1 * TOKEN_S_MAX)], "for 2 tokens"),
        ("npu", PARIS, [first(), again(), long("the the")], "after a prompt of 4000 tokens, not 'Paris'"),
        ("npu", PLAIN, [first(), again(), long(fault="it broke")], "after a prompt of 4000 tokens: it broke"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(device, asked, heard, reason):
    verdict = follow(asked, heard, device=device)
    assert not verdict.sound
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("device", "asked", "heard"),
    [
        ("npu", Canary(reference="Par"), [first("Paris")]),
        ("npu", Canary(reference="Paris is big"), [first("Paris")]),  # one beginning may hold more tokens' text
        ("cpu", Canary(reference="Berlin"), [first("Paris")]),  # it is the reference
        ("cpu", PLAIN, [first("\ufffd")]),  # random weights say such things
        ("cpu", PLAIN, [first(), again(took_s=9 * TOKEN_S_MAX)]),  # nothing is slower than the processor
        ("npu", Canary("Capital?", ("Paris",)), [first(), again(), long("lost")]),  # not known to hold that long
    ],
)
def test_what_may_be_right_is_not_called_wrong(device, asked, heard):
    step = follow(asked, heard, device=device)
    assert isinstance(step, NextQuestion) or step.sound


def test_an_answer_is_compared_by_its_first_tokens():
    assert canary.beginning([("The", 1), (" ca", 2), ("pit", 1), ("al", 1)]) == "The capit"
    assert canary.beginning([]) == ""
    assert len(canary.beginning([("spray" * 1000, 1)])) == canary.BEGINNING_CHARACTERS


class Broken:
    """A real model whose answers are changed on their way."""

    def __init__(self, model, change):
        self._model, self._change = model, change
        self.limits, self.start, self.cancel = model.limits, model.start, model.cancel
        self.prompts = []

    def step(self):
        for event in self._model.step():
            if isinstance(event, Text):
                yield Text(event.job_id, self._change(event.text), event.tokens)
            else:
                yield event


@pytest.fixture(scope="module")
def demo(demo_model):
    model = backend.find("onnx")(ModelSpec(demo_model, "onnx", 1024, 1, threads=1))
    yield model
    model.close()


ASKED = Canary("Status: temperature 71 C, pump off. Is the pump on?", ("the pump is off",))


@pytest.mark.engine
def test_a_real_model_passes_and_its_beginning_is_returned(demo):
    signs = []
    assert Rehearsal(demo, ASKED, tell=signs.append).run("cpu") == "No, the pump"
    assert Trying(0) in signs


@pytest.mark.engine
def test_elsewhere_it_is_asked_after_a_prompt_as_long_as_it_takes(demo):
    """Found without computing; the prompt's length is told before it is computed, so that nobody thinks it hangs."""
    signs = []
    Rehearsal(demo, ASKED, tell=signs.append).run("npu")
    assert 0.7 * 1024 < max(sign.unprocessed_tokens for sign in signs) < 1024 - canary.ANSWER_TOKENS


@pytest.mark.engine
@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda _text: "the ", "it said 'the the the"), (lambda text: text + "\ufffd", "it said 'No\\ufffd")],
)
def test_a_model_that_talks_nonsense_may_not_serve(demo, change, reason):
    with pytest.raises(EdgeAgentError) as caught:
        Rehearsal(Broken(demo, change), ASKED, tell=[].append).run("cpu")
    assert caught.value.code is Code.MODEL_ERROR
    assert caught.value.message.startswith("its trial failed: asked 'Status:")
    assert reason in caught.value.message


@pytest.mark.engine
def test_a_prompt_that_is_refused_for_another_reason_fails_the_trial():
    class Refusing:
        limits = ModelLimits(512, 1)

        def start(self, generation):
            raise EdgeAgentError(Code.BAD_REQUEST, "no template")

    with pytest.raises(EdgeAgentError, match="its trial failed: it does not answer: no template"):
        Rehearsal(Refusing(), PLAIN, tell=[].append).run("cpu")
    assert rehearsal.SHRINK < 1
