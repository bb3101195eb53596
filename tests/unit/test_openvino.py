"""What the library is told, what its errors become, and what it can be trusted with."""

import gc
import json
import subprocess
import sys

import psutil
import pytest

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
from edge_agent.errors import Code, EdgeAgentError

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
    from edge_agent.engine.openvino_model import library

    with pytest.raises(EdgeAgentError) as raised, library():
        raise error
    assert raised.value.code is code
    assert "\n" not in raised.value.message


def test_temperature_zero_does_not_sample(load, ask):
    """Greedy by name; other choices do not matter then."""
    from edge_agent.engine.openvino_sequence import sampling

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


def test_longrope_is_kept_to_its_original_context(load):
    """Beyond it neighbours would change each other's text; plain rope has no such border."""
    from edge_agent.engine.openvino import known_context_tokens

    config = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
    assert known_context_tokens(config | {"rope_scaling": {"type": "longrope"}}) == 4096
    assert known_context_tokens(config | {"rope_scaling": None}) == 131_072
    assert known_context_tokens({"max_position_embeddings": 4096}) == 4096


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


def test_a_grammar_in_another_language_is_refused(model, ask):
    """Lark is for other engines; it is not taken for something else."""
    with pytest.raises(EdgeAgentError, match="EBNF") as raised:
        model.start(ask(guide=Guide(GuideKind.GRAMMAR, 'start: "yes"')))
    assert raised.value.code is Code.UNSUPPORTED
