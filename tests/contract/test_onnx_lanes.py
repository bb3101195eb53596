"""Lanes of the onnx backend: computed together, and what one holds serves the next."""

import random
from itertools import count

import pytest
from conftest import BareOnnx
from driving import drive, outcome

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Failed, Finished, FinishReason, Generation, JobId, Progress, Text, Turn
from edge_agent.models.memory import read_build

pytestmark = pytest.mark.engine
LONGROPE_TOKENS = 4097


@pytest.fixture
def load(tiny_model):
    """Load the tiny model; closed at the end of the test, so that each begins with empty lanes."""
    models = []

    def load(*, context_tokens=8192, parallel=4):
        models.append(backend.find("onnx")(ModelSpec(tiny_model, "onnx", context_tokens, parallel, threads=1)))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture(scope="module")
def bare(tiny_model):
    """The bare library: every prompt cold, in one call, alone."""
    return BareOnnx(tiny_model)


@pytest.fixture
def ask():
    """Make generations with a system prompt and words of their own: digits, each a token."""
    numbers = count(1)

    def ask(own, *, system="", max_tokens=24, **options):
        turns = (Turn("system", system),) * bool(system) + (Turn("user", own),)
        return Generation(JobId(f"{next(numbers)}.1"), turns, max_tokens, **options)

    return ask


def digits(length, seed=0):
    return "".join(random.Random(1000 * length + seed).choices("0123456789", k=length))


def cold(bare, generation):
    return "".join(bare.texts(generation.turns, generation.max_tokens))


def computed(said):
    return sum(event.prefill_tokens for event in said.events if isinstance(event, Progress))


def spy(model, monkeypatch):
    """Return the list of calls to the graph, as ranges of lanes, with the new tokens of each lane."""
    calls, run = [], model._decoder.run

    def noting(lanes, tokens, lengths, features):
        calls.append((lanes, tokens.shape[1]))
        return run(lanes, tokens, lengths, features)

    monkeypatch.setattr(model._decoder, "run", noting)
    return calls


def test_a_known_beginning_is_not_computed_again(load, bare, ask):
    """What the usage says was reused was, and the text is that of a cold prompt; also with others in between."""
    model, system = load(), digits(192)
    shared = len(bare.encode((Turn("system", system), Turn("user", "")))) - 4
    known = 0
    for i in range(6):
        generation = ask(digits(32, i), system=system)
        (said,) = drive(model, generation)
        usage = said.end.usage
        assert usage.cached_tokens >= known
        assert computed(said) == usage.prompt_tokens - usage.cached_tokens
        assert said.text == cold(bare, generation)
        drive(model, ask(digits(300, i)), ask(digits(40, i)))
        known = shared
    assert known > 192


def test_a_conversation_goes_on_from_its_end(load, bare, ask):
    """Each turn computes only what is new, also when another conversation runs in between."""
    model = load(parallel=2)
    talks = {seed: [Turn("user", digits(100, seed))] for seed in (1, 2)}
    known = dict.fromkeys(talks, 0)
    for _ in range(3):
        for seed, turns in talks.items():
            generation = Generation(ask("").job_id, tuple(turns), 16)
            (said,) = drive(model, generation)
            assert said.text == cold(bare, generation)
            assert said.end.usage.cached_tokens >= known[seed]
            known[seed] = said.end.usage.prompt_tokens
            turns += [Turn("assistant", said.text), Turn("user", digits(20, len(turns)))]


def test_those_that_come_together_share_a_beginning(load, bare, ask):
    """The first computes it, the others copy it, while the first goes on."""
    model, system = load(), digits(192)
    asked = [ask(digits(32, i), system=system) for i in range(4)]
    said = drive(model, *asked)
    assert [each.text for each in said] == [cold(bare, generation) for generation in asked]
    assert said[0].end.usage.cached_tokens == 0
    assert all(each.end.usage.cached_tokens > 192 for each in said[1:])


def test_a_shorter_prompt_lets_its_beginning_be_computed_once(load, bare, ask):
    """The longer one, under way, computes what both have in common; then the shorter one overtakes it."""
    model, system = load(), digits(192)
    long, short = ask(digits(700), system=system), ask(digits(32), system=system)
    model.start(long)
    events = list(model.step())
    assert events[-1].unprocessed_tokens > 800
    model.start(short)
    while model._sequences:
        events += model.step()
    said = [outcome(events, each.job_id) for each in (long, short)]
    assert [each.text for each in said] == [cold(bare, each) for each in (long, short)]
    assert said[1].end.usage.cached_tokens > 192
    ends = [event.job_id for event in events if isinstance(event, Progress) and not event.unprocessed_tokens]
    assert ends == [short.job_id, long.job_id]


def test_a_cancelled_prompt_is_a_beginning_too(load, bare, ask):
    """A retry goes on where the first try was stopped."""
    model, own = load(), digits(2000)
    first = ask(own)
    model.start(first)
    for _ in range(3):
        list(model.step())
    list(model.cancel(first.job_id))
    (said,) = drive(model, again := ask(own))
    assert said.end.usage.cached_tokens > 32
    assert said.text == cold(bare, again)


def test_settings_of_the_last_job_do_not_stay(load, bare, ask):
    """A lane is used again with other settings: nothing of the last penalty, seed, stop string or length is left."""
    model, own = load(parallel=1), digits(60)
    plain = ask(own, max_tokens=40)
    drive(model, ask(own, repetition_penalty=1.8, temperature=1.5, seed=3, stop=("7",), max_tokens=3))
    (said,) = drive(model, plain)
    assert said.end.usage.cached_tokens == said.end.usage.prompt_tokens - 1
    assert said.text == cold(bare, plain)
    assert said.end.usage.completion_tokens == 40
    (penalised,) = drive(model, penalty := ask(own, max_tokens=40, repetition_penalty=1.5))
    assert penalised.text == "".join(bare.texts(penalty.turns, 40, repetition_penalty=1.5)) != said.text


def test_all_that_generate_are_computed_in_one_call(load, bare, ask, monkeypatch):
    """Whatever their lengths; each step is one call."""
    model = load()
    asked = [ask(digits(length), max_tokens=80) for length in (5, 300, 40, 900)]
    for generation in asked:
        model.start(generation)
    events = []
    while sum(isinstance(event, Progress) and not event.unprocessed_tokens for event in events) < len(asked):
        events += model.step()
    events += model.step()
    calls = spy(model, monkeypatch)
    for _ in range(20):
        events += model.step()
    assert calls == [(range(4), 1)] * 20
    while model._sequences:
        events += model.step()
    assert [outcome(events, each.job_id).text for each in asked] == [cold(bare, each) for each in asked]


def test_neighbours_beyond_the_original_context_change_nothing(load, bare, ask):
    """One beyond it, one that crosses it while others generate, and two short ones."""
    model = load()
    lengths = (LONGROPE_TOKENS + 200, LONGROPE_TOKENS - 30, 50, 400)
    asked = [ask(digits(length), max_tokens=48) for length in lengths]
    texts = [cold(bare, each) for each in asked]
    assert [each.text for each in drive(model, *asked)] == texts
    assert [each.text for each in drive(model, *(ask(digits(length), max_tokens=48) for length in lengths))] == texts


def test_a_long_prompt_finds_the_beginning_of_a_long_one(load, bare, ask):
    """And the keys of a short one are not taken for it, nor the other way round."""
    model, own = load(), digits(LONGROPE_TOKENS + 500)
    for length, reused in ((1000, False), (LONGROPE_TOKENS + 300, False), (1000, True), (LONGROPE_TOKENS + 400, True)):
        generation = ask(own[:length] + digits(20, length))
        (said,) = drive(model, generation)
        assert said.text == cold(bare, generation)
        assert (said.end.usage.cached_tokens > 900) == reused


def test_a_failing_prompt_leaves_the_others_running(load, bare, ask, monkeypatch):
    """Memory that runs out over a long piece ends that job; its lane serves the next."""
    model = load(parallel=2)
    good, bad = ask(digits(50)), ask(digits(700))
    run = model._decoder.run

    def failing(lanes, tokens, lengths, features):
        if lengths[0] > 200 and tokens.shape[1] > 1:
            raise EdgeAgentError(Code.OUT_OF_MEMORY, "memory ran out")
        return run(lanes, tokens, lengths, features)

    monkeypatch.setattr(model._decoder, "run", failing)
    well, ill = drive(model, good, bad)
    assert well.text == cold(bare, good)
    assert isinstance(ill.end, Failed)
    assert ill.end.code is Code.OUT_OF_MEMORY
    monkeypatch.undo()
    (said,) = drive(model, again := ask(digits(700)))
    assert said.text == cold(bare, again)


def test_a_failing_call_ends_those_in_it_and_nothing_else(load, bare, ask, monkeypatch):
    """What they had computed before is still good."""
    model = load()
    asked = [ask(digits(60, i)) for i in range(3)]
    for generation in asked:
        model.start(generation)
    for _ in range(8):
        list(model.step())

    def failing(lanes, tokens, lengths, features):
        raise EdgeAgentError(Code.MODEL_ERROR, "no")

    monkeypatch.setattr(model._decoder, "run", failing)
    failed = [event for event in model.step() if isinstance(event, Failed)]
    assert {event.job_id for event in failed} == {each.job_id for each in asked}
    monkeypatch.undo()
    for generation in [ask(digits(60, i)) for i in range(3)]:
        (said,) = drive(model, generation)
        assert said.end.usage.cached_tokens > 50
        assert said.text == cold(bare, generation)


def test_beginnings_are_kept_in_no_more_memory_than_was_reserved(load, tiny_model, ask):
    """Keys and values of context times lanes, however many prompts there were."""
    model = load(context_tokens=600, parallel=3)
    bytes_per_token = 4 * read_build(tiny_model, "onnx").kv_values_per_token
    memory = [buffer.memory for buffer in model._decoder._buffers]
    assert sum(each.nbytes for each in memory) == bytes_per_token * 600 * 3
    for i in range(12):
        drive(model, ask(digits(300, i), max_tokens=2))
    assert all(kept is each.memory for kept, each in zip(memory, model._decoder._buffers, strict=True))
    (said,) = drive(model, ask(digits(300, 11)))
    assert said.end.usage.cached_tokens > 290
    (said,) = drive(model, ask(digits(300, 2)))
    assert said.end.usage.cached_tokens == 0


def test_an_answer_may_fill_the_context_beside_others(load, bare, ask):
    """The last token of a full lane is nobody's to overwrite."""
    model = load(context_tokens=120, parallel=3)
    asked = [ask(digits(length), max_tokens=500) for length in (20, 60, 90)]
    said = drive(model, *asked)
    for each, generation in zip(said, asked, strict=True):
        assert isinstance(each.end, Finished)
        assert each.end.reason is FinishReason.LENGTH
        assert each.end.usage.prompt_tokens + each.end.usage.completion_tokens == 120
        tokens = sum(event.tokens for event in each.events if isinstance(event, Text))
        assert each.text == "".join(bare.texts(generation.turns, tokens))
    again = [ask(digits(length), max_tokens=500) for length in (20, 60, 90)]
    assert [each.text for each in drive(model, *again)] == [each.text for each in said]
