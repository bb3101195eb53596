"""What the library is told, what its errors become, and what it can be trusted with."""

import gc
import itertools
import json
import subprocess
import sys

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    Generation,
    Guide,
    GuideKind,
    JobId,
    Progress,
    Text,
    Turn,
)

pytestmark = pytest.mark.engine
QUESTION = (Turn("user", "is the pump on?"),)


@pytest.fixture(scope="module")
def load(openvino_genai):
    """The backend's load function; the test is skipped without its library."""
    return backend.find("openvino")


@pytest.fixture(scope="module")
def model(load, tiny_openvino):
    """The tiny model, used by one test after the other."""
    loaded = load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def ask():
    """Make generations, each with a name of its own."""
    numbers = iter(range(1, 10_000))
    return lambda turns=QUESTION, max_tokens=24, **options: Generation(
        JobId(f"{next(numbers)}.1"), turns, max_tokens, **options
    )


def drive(model, generation):
    """Run one to its end; return its text, its end, and the tokens that its prompt's pieces had."""
    model.start(generation)
    text, computed = "", 0
    for _ in range(5000):
        for event in model.step():
            if event.job_id != generation.job_id:
                continue
            match event:
                case Text():
                    text += event.text
                case Progress():
                    computed += event.prefill_tokens
                case _:
                    return text, event, computed
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("std::bad_alloc"), Code.OUT_OF_MEMORY),
        (
            RuntimeError("Requested KV-cache size is larger than available memory size on the system."),
            Code.OUT_OF_MEMORY,
        ),
        (MemoryError(), Code.OUT_OF_MEMORY),
        (RuntimeError("Exception from src/core.cpp:1:\n'temperature' must be positive\n"), Code.MODEL_ERROR),
        (RuntimeError(), Code.MODEL_ERROR),
    ],
    ids=repr,
)
def test_the_librarys_errors_get_a_code(load, error, code):
    """What may succeed with more memory is told from what never will."""
    from edge_agent.engine.openvino.pipeline_model import library

    with pytest.raises(EdgeAgentError) as raised, library():
        raise error
    assert raised.value.code is code
    assert "\n" not in raised.value.message


def test_temperature_zero_does_not_sample(load, ask):
    """Greedy by name; other choices do not matter then."""
    from edge_agent.engine.openvino.sequence import sampling

    asked = ask(temperature=0.0, top_k=40, top_p=0.5, seed=7, repetition_penalty=1.1)
    assert sampling(asked) == {"do_sample": False, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": -1.0}, {"temperature": -1.0}, {"temperature": 1.0, "top_p": 7.0}]
)
def test_settings_the_library_refuses_fail_that_job(model, ask, options):
    """Before anything is computed, with its reason."""
    _, end, _ = drive(model, ask(**options))
    assert isinstance(end, Failed)
    assert end.code is Code.MODEL_ERROR


def test_a_folder_that_is_no_model_is_told(load, tiny_openvino, tmp_path):
    """With the file at fault, or the library's reason."""
    for name in ("tokenizer.json", "config.json"):
        with pytest.raises(EdgeAgentError, match=name) as raised:
            load(ModelSpec(tmp_path, "openvino", 4096, 4, threads=1))
        assert raised.value.code is Code.MODEL_ERROR
        (tmp_path / name).write_bytes((tiny_openvino / name).read_bytes())
    with pytest.raises(EdgeAgentError, match="cannot be loaded"):
        load(ModelSpec(tmp_path, "openvino", 4096, 4, threads=1))


def test_a_device_it_cannot_use_is_refused(load, tiny_openvino):
    """The library's pipeline of continuous batching knows no NPU."""
    with pytest.raises(EdgeAgentError, match="npu") as raised:
        load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1, device="npu"))
    assert raised.value.code is Code.UNSUPPORTED


def test_nothing_is_reported_to_anybody(load, tiny_openvino):
    """The library's own reporter is not there for it, and all works without."""
    program = (
        "import sys\n"
        "from edge_agent.engine.backend import find\n"
        "find('openvino')\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "print(used.tm.__name__, [n for n in sys.modules if n.startswith('openvino_telemetry') and sys.modules[n]])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "[]"]


def test_cached_tokens_are_those_not_computed(model, ask):
    """Alone to the token: with blocks found whole or in part, and with nothing left but the last token."""
    first = (Turn("user", "7" * 300),)
    _, end, computed = drive(model, ask(first, 1))
    known = end.usage.prompt_tokens
    assert (end.usage.cached_tokens, computed) == (0, known)
    assert known % 32
    longer = (*first, Turn("assistant", ""), Turn("user", "8" * 40))
    _, end, computed = drive(model, ask(longer, 1))
    assert (end.usage.cached_tokens, computed) == (known, end.usage.prompt_tokens - known)
    _, end, computed = drive(model, ask(longer))
    assert (end.usage.cached_tokens, computed) == (end.usage.prompt_tokens - 1, 1)
    other = (Turn("user", "7" * 100 + "9" * 200),)
    _, end, _ = drive(model, ask(other))
    assert end.usage.cached_tokens == 96


def test_cached_tokens_beside_others_are_shared_with_one_of_them(model, ask):
    """No more is claimed than what is sure."""
    running = ask((Turn("user", "5" * 200),), 1000)
    model.start(running)
    while not any(isinstance(event, Text) for event in list(model.step())):
        pass
    _, end, computed = drive(model, ask((Turn("user", "5" * 150 + "6" * 99),), 5))
    assert end.usage.cached_tokens == 128
    assert computed == end.usage.prompt_tokens - 128
    list(model.cancel(running.job_id))


def first_step(model, *generations):
    """Start generations together; return how many tokens of each prompt the first step computed."""
    for generation in generations:
        model.start(generation)
    computed = dict.fromkeys((generation.job_id for generation in generations), 0)
    for event in list(model.step()):
        if isinstance(event, Progress):
            computed[event.job_id] += event.prefill_tokens
    return list(computed.values())


def test_prompts_that_came_together_are_computed_together(model, ask):
    """As far as one piece goes; one that shares what is just being computed waits for it, and finds it."""
    drive(model, ask((Turn("user", "0" * 300),), 1))  # the speed is known
    apart = [ask((Turn("user", digit * 30),), 1) for digit in "123"]
    assert all(first_step(model, *apart))
    alike = [ask((Turn("user", "4" * 90 + digit),), 1) for digit in "56"]
    first, second = first_step(model, *alike)
    assert first
    assert second == 0
    ends = [event for event in list(model.step()) if isinstance(event, Finished)]
    assert [end.usage.cached_tokens for end in ends] == [64]


def test_what_a_waiting_prompt_lost_to_others_is_computed_again(load, tiny_openvino, ask):
    """The library keeps what was used last. So the pieces that follow are no longer than others, and are told."""
    small = load(ModelSpec(tiny_openvino, "openvino", 640, 3, threads=1), now_s=map(float, itertools.count()).__next__)
    first, waiting = ask((Turn("user", "1" * 600),), 1), ask((Turn("user", "2" * 510),), 8)
    small.start(first)
    list(small.step())
    small.start(waiting)
    told = []
    while not told or not told[-1].prefill_tokens:
        told += [event for event in small.step() if event.job_id == waiting.job_id]
    under_way, numbers = {first.job_id}, itertools.count()
    while first.job_id in under_way:
        short = ask((Turn("user", f"{next(numbers):03d}" + "3" * 250),), 1)
        small.start(short)
        under_way.add(short.job_id)
        while short.job_id in under_way:
            events = list(small.step())
            told += [event for event in events if event.job_id == waiting.job_id]
            under_way -= {event.job_id for event in events if isinstance(event, Finished)}
    sequence = small._sequences[waiting.job_id]
    for job_id in under_way:
        list(small.cancel(job_id))
    assert sequence.position
    assert small._found_blocks(sequence.prompt, sequence.position) == 0
    while not isinstance(told[-1], Finished):
        told += small.step()
    computed = sum(event.prefill_tokens for event in told if isinstance(event, Progress))
    assert computed > told[-1].usage.prompt_tokens
    small.close()


def test_one_prompt_that_fails_leaves_those_that_joined_it(model, ask):
    """What the library refuses of one is that one's affair."""
    bad, good = ask((Turn("user", "1" * 30),), 2, repetition_penalty=-1.0), ask((Turn("user", "2" * 30),), 2)
    model.start(bad)
    _, end, _ = drive(model, good)
    assert end.reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("said", "options", "used"),
    [("128", {}, "128"), ("128", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}, "0"), ("-1", {}, None), (None, {}, None)],
)
def test_activations_are_quantised_in_groups_as_the_weights_are(load, tmp_path, said, options, used):
    """Half as fast again as the library's own choice; the decision's and the folder's own settings stand."""
    from edge_agent.engine.openvino.load import TEXT_GRAPH, properties

    said = f'<nncf><weight_compression><group_size value="{said}" /></weight_compression></nncf>' if said else ""
    (tmp_path / TEXT_GRAPH).write_text(f"<net>{'x' * 100_000}<rt_info>{said}</rt_info></net>")
    spec = ModelSpec(tmp_path, "openvino", 4096, 4, threads=1, options=options)
    assert properties(spec, graph=TEXT_GRAPH).get("DYNAMIC_QUANTIZATION_GROUP_SIZE") == used
    own = '<runtime_options><DYNAMIC_QUANTIZATION_GROUP_SIZE value="0" /></runtime_options>'
    (tmp_path / TEXT_GRAPH).write_text(f"<net><rt_info>{said}{own}</rt_info></net>")
    assert properties(spec, graph=TEXT_GRAPH).get("DYNAMIC_QUANTIZATION_GROUP_SIZE") == options.get(
        "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    )


def test_memory_comes_back_when_a_model_is_closed(load, tiny_openvino, ask):
    """Weights, and the keys and values of four long prompts, again and again."""

    kept = []

    def use():
        # 32-bit keys and values, so that what leaks is worth measuring: 17 MB each time.
        options = {"KV_CACHE_PRECISION": "f32"}
        used = load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1, options=options))
        for number in range(4):
            used.start(ask((Turn("user", f"{number}" + "pump " * 600),), 4))
        while list(used.step()):
            pass
        used.close()
        kept.append(used)  # what is closed is empty, whoever still holds it
        gc.collect()
        return psutil.Process().memory_info().rss

    use()
    before_bytes = use()
    assert max(use() for _ in range(3)) - before_bytes < 10 * 2**20


# Guides


@pytest.mark.parametrize(
    ("guide", "check"),
    [
        (Guide(GuideKind.REGEX, "(yes|no)"), lambda text: text in {"yes", "no"}),
        (Guide(GuideKind.GRAMMAR, 'root ::= "a" "b"{2,3} "c"'), lambda text: text in {"abbc", "abbbc"}),
        (
            Guide(
                GuideKind.JSON_SCHEMA,
                '{"type":"object","properties":{"on":{"type":"boolean"}},"required":["on"],"additionalProperties":false}',
            ),
            lambda text: set(json.loads(text)) == {"on"},
        ),
    ],
    ids=["regex", "grammar", "json_schema"],
)
def test_a_guided_text_keeps_to_its_guide(model, ask, guide, check):
    """Random weights say what they must, greedy or sampled, and end with it."""
    for options in ({}, {"temperature": 1.0, "seed": 3}):
        text, end, _ = drive(model, ask(max_tokens=60, guide=guide, **options))
        assert check(text)
        assert end.reason is FinishReason.STOP


@pytest.mark.parametrize(
    "guide",
    [
        Guide(GuideKind.REGEX, "(yes|no"),
        Guide(GuideKind.REGEX, "(?=secret)b"),
        Guide(GuideKind.JSON_SCHEMA, '{"type":"secret"}'),
        Guide(GuideKind.JSON_SCHEMA, '{"$ref":"#/secret"}'),
        Guide(GuideKind.JSON_SCHEMA, "false"),
        Guide(GuideKind.GRAMMAR, 'root ::= "secret'),
        Guide(GuideKind.GRAMMAR, "secret ::= [a-z]"),
    ],
    ids=lambda guide: guide.text,
)
def test_a_guide_that_cannot_be_compiled_harms_nobody(model, ask, guide):
    """It is refused with the reason before its job begins; neighbours and the next guide go on."""
    alone, _, _ = drive(model, ask())
    neighbour = ask()
    model.start(neighbour)
    list(model.step())
    with pytest.raises(EdgeAgentError, match=r"^response_format: .{10,}; mend it$") as raised:
        model.start(ask(guide=guide))
    assert raised.value.code is Code.BAD_REQUEST
    assert "secret" not in raised.value.message
    assert ".cc" not in raised.value.message
    text = drive_on(model, neighbour)
    assert alone.endswith(text)
    assert drive(model, ask(max_tokens=60, guide=Guide(GuideKind.REGEX, "fine")))[0] == "fine"


def drive_on(model, generation):
    """Run what has begun to its end; return the text that was still to come."""
    text = ""
    for _ in range(5000):
        for event in model.step():
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, Finished):
                assert event.job_id == generation.job_id
                return text
    raise AssertionError("it did not end")


def test_an_owners_tokens_are_found_by_that_owner_alone(model, ask):
    """By no other, also not beside them, whatever is asked of the library's cache; nobody's are nobody's own."""
    turns = (Turn("system", "The pump in hall three is off. " * 12), *QUESTION)
    texts = set()
    for owner in ("line-3", "guesser", "", "line-4"):
        found = []
        for _ in range(2):
            asked = ask(turns, owner=owner)
            prompt = model._reader.read(asked, model._owners.number(asked))
            found.append(model._found_blocks(prompt, len(prompt.tokens)))
            text, _, _ = drive(model, asked)
            texts.add(text)
        assert found[0] == 0
        assert found[1] > 3
    assert len(texts) == 1


def test_a_repetition_penalty_keeps_owners_apart_too(load, tiny_openvino, model, ask):
    """The library looks a prompt's tokens up by their own names then, which only the first owner's can go by."""
    turns = (Turn("system", "The pump in hall two is off. " * 12), *QUESTION)
    text, _, _ = drive(model, ask(turns, repetition_penalty=1.5))
    apart = load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1, apart=True))
    cached = []
    for owner in ("line-5", "line-5", "guesser", "guesser", "line-5"):
        said, end, _ = drive(apart, ask(turns, repetition_penalty=1.5, owner=owner))
        assert said == text
        cached.append(end.usage.cached_tokens)
    assert cached[1] > 100
    assert cached[0] == cached[2] == cached[3] == cached[4] == 0
    apart.close()


@given(st.lists(st.sampled_from([f"line-{number}" for number in range(1100)]), max_size=40), st.integers(6, 60))
def test_no_two_owners_go_by_the_same_names(openvino_genai, ask, asking, length):
    """With 40 of them six tokens tell all apart, which any prompt has; they are the tokens that they were."""
    from edge_agent.engine.openvino.owners import Owners, named

    owners, tokens = Owners(named=True), range(100, 100 + length)
    seen = {owner: named(tokens, owners.number(ask(owner=owner)), 512) for owner in asking}
    assert all((ids % 512 == [tokens]).all() for ids in seen.values())
    assert len({ids[0, :6].tobytes() for ids in seen.values()}) == len(seen)


def _filled(step, job_id):
    """Return whether the last of a prompt was computed in a step."""
    told = [event for event in step if isinstance(event, Progress) and event.job_id == job_id]
    return any(event.prefill_tokens and not event.unprocessed_tokens for event in told)


def test_what_cannot_be_told_apart_is_not_kept(load, tiny_openvino, model, ask, monkeypatch):
    """Where tokens have no other names prompts are computed whole once a second owner asks: the texts are the same."""
    from edge_agent.engine.openvino import load as openvino
    from edge_agent.engine.openvino.whole import OpenvinoWhole

    monkeypatch.setattr(openvino, "alike", lambda _pipeline, _vocab_size: False)
    whole = load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1, apart=True))
    long, short = (Turn("system", "The pump in hall one is off. " * 60), *QUESTION), QUESTION
    for owner, found in (("line-3", False), ("line-3", True), ("guesser", False), ("line-3", False)):
        _, end, _ = drive(whole, ask(long, owner=owner))
        assert (end.usage.cached_tokens > 0) is found
    asked = [ask(turns, 40, owner=owner) for turns, owner in ((long, "line-3"), (short, "line-4"), (long, "line-3"))]
    canceled = ask((Turn("user", "Why? " * 300),))
    for each in (*asked[:2], canceled, asked[2]):
        whole.start(each)
    events, ended = [], 0
    while ended < 3:
        events.append(list(whole.step()))
        ended += sum(isinstance(event, Finished) for event in events[-1])
        if any(event.job_id == canceled.job_id and event.prefill_tokens for event in events[-1]):
            list(whole.cancel(canceled.job_id))
    for each in asked:
        own = [event for step in events for event in step if event.job_id == each.job_id]
        text = "".join(event.text for event in own if isinstance(event, Text))
        assert text == drive(model, ask(each.turns, 40))[0]
        computed = [event.prefill_tokens for event in own if isinstance(event, Progress)]
        assert sum(computed) == own[-1].usage.prompt_tokens
        assert max(computed) <= OpenvinoWhole.call_tokens + 4
        assert own[-1].usage.cached_tokens == 0
        filled = next(step for step in events if _filled(step, each.job_id))
        assert any(isinstance(event, Text) and event.job_id == each.job_id for event in filled)
    whole.close()


def test_other_names_are_tried_where_owners_are_kept_apart(load, tiny_openvino):
    """A model that took them for something else would answer something else."""
    from edge_agent.engine.openvino.owners import alike

    model = load(ModelSpec(tiny_openvino, "openvino", 4096, 4, threads=1, apart=True))
    pipeline = model._model._pipeline
    assert alike(pipeline, 512)
    assert not alike(pipeline, 511)
    model.close()
