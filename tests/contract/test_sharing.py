"""Generations share steps and whatever a backend keeps of past prompts: none of it shows in a text."""

import random
from dataclasses import replace

import pytest
from driving import drive

from edge_agent.engine.messages import Finished, FinishReason, Generation, Progress, Text, Turn


def prompt(rng, length):
    return "".join(rng.choices("0123456789 pumfan", k=length))


def test_a_known_beginning_changes_nothing(model, bare, job_id):
    """The same prompt again, one with the same beginning, and one that goes on after the answer, beside others."""
    rng = random.Random(1)
    for length in (5, 60, 90, 200, 333):
        first = (Turn("system", prompt(rng, 70)), Turn("user", prompt(rng, length)))
        (said,) = drive(model, Generation(job_id(), first, 40))
        longer = (*first, Turn("assistant", said.text), Turn("user", "and?"))
        other = (first[0], Turn("user", prompt(rng, length)))
        asked = [first, longer, other, (Turn("user", prompt(rng, 150)),), first, longer]
        alone = ["".join(bare.texts(turns, 40)) for turns in asked]
        assert said.text == alone[0]
        assert [drive(model, Generation(job_id(), turns, 40))[0].text for turns in asked] == alone
        together = drive(model, *(Generation(job_id(), turns, 40) for turns in asked[1:5]))
        assert [each.text for each in together] == alone[1:5]


def test_a_cancelled_prompt_leaves_nothing_behind(model, bare, job_id, side_by_side):
    """What was computed of it may serve the next with the same beginning, what was not may not."""
    rng = random.Random(2)
    neighbour = Generation(job_id(), (Turn("user", "is the pump on?"),), 2000)
    model.start(neighbour)
    list(model.step())
    for pieces in range(1, 5):
        turns = (Turn("user", prompt(rng, 3000)),)
        canceled = Generation(job_id(), turns, 8)
        model.start(canceled)
        events = [event for _ in range(pieces) for event in model.step() if event.job_id == canceled.job_id]
        assert 0 < events[-1].unprocessed_tokens < events[0].unprocessed_tokens
        (end,) = model.cancel(canceled.job_id)
        assert end.reason is FinishReason.CANCELED
        (said,) = drive(model, Generation(job_id(), turns, 24))
        assert said.text == "".join(bare.texts(turns, 24))
    list(model.cancel(neighbour.job_id))


@pytest.mark.parametrize("seed", range(3))
def test_joins_and_leaves_at_any_step_change_no_text(model, bare, job_id, seed, side_by_side):
    """Each generation that ends has the text of one alone, whoever came and went meanwhile."""
    rng = random.Random(100 + seed)
    systems = [prompt(rng, length) for length in (10, 70, 200)]
    asked, under_way, texts, ended = [], {}, {}, 0
    while ended < 40:
        while len(under_way) < model.limits.parallel and rng.random() < 0.5:
            turns = (Turn("system", rng.choice(systems)), Turn("user", prompt(rng, rng.randrange(1, 200))))
            if asked and rng.random() < 0.5:
                turns = rng.choice(asked)
            generation = Generation(job_id(), turns, rng.choice((1, 7, 33, 50)), owner=rng.choice(("", "", "a", "b")))
            model.start(generation)
            under_way[generation.job_id], texts[generation.job_id] = generation, ""
        for event in model.step():
            if isinstance(event, Text):
                texts[event.job_id] += event.text
            elif not isinstance(event, Progress):
                assert isinstance(event, Finished)
                generation, text = under_way.pop(event.job_id), texts[event.job_id]
                assert text == "".join(bare.texts(generation.turns, generation.max_tokens))
                ended += 1
                if event.usage.prompt_tokens < 1000:
                    asked += [generation.turns, (*generation.turns, Turn("assistant", text), Turn("user", "more"))]
        if under_way and rng.random() < 0.1:
            job = rng.choice(list(under_way))
            assert [each.reason for each in model.cancel(job) if isinstance(each, Finished)] == [FinishReason.CANCELED]
            del under_way[job]
    for job in under_way:
        list(model.cancel(job))


def computed(outcome):
    """Return how many tokens of a prompt were computed, by what was told while they were."""
    return sum(event.prefill_tokens for event in outcome.events if isinstance(event, Progress))


def test_what_was_computed_for_one_owner_serves_no_other(model, bare, job_id, subject):
    """Not a token of it, by the count and by what is computed; who asked before finds their own."""
    rng = random.Random(3)
    system, own, other = (Turn("system", prompt(rng, 300)), Turn("user", prompt(rng, 40)), Turn("user", "x"))
    first = True
    for owner in ("line-3", "guesser", "line-4"):
        for turns in ((system, own), (system, other), (system, own)):
            (said,) = drive(model, Generation(job_id(), turns, 24, owner=owner))
            assert said.text == "".join(bare.texts(turns, 24))
            usage = said.end.usage
            assert computed(said) == usage.prompt_tokens - usage.cached_tokens
            keeps = subject.device != "npu" and not first
            assert usage.cached_tokens > usage.prompt_tokens / 2 if keeps else usage.cached_tokens == 0
            first = False
        first = True


def test_a_beginning_that_is_computed_for_one_owner_is_not_waited_for_by_another(
    model, bare, job_id, subject, side_by_side
):
    """Side by side, with the very same prompt: each is computed for itself, in the order of their turns."""
    rng = random.Random(4)
    turns = (Turn("system", prompt(rng, 700)), Turn("user", "is the pump on?"))
    asked = [Generation(job_id(), turns, 24, owner=owner) for owner in ("line-3", "guesser", "line-3")]
    one, guess, again = drive(model, *asked)
    assert {each.text for each in (one, guess, again)} == {"".join(bare.texts(turns, 24))}
    assert [each.end.usage.cached_tokens for each in (one, guess)] == [0, 0]
    assert computed(one) == computed(guess) == one.end.usage.prompt_tokens
    assert again.end.usage.cached_tokens > one.end.usage.prompt_tokens / 2


def test_what_is_told_and_when_does_not_depend_on_what_others_say(load_slow, folder, job_id, side_by_side):
    """The same steps with the same words, whether the neighbour's prompt is what was guessed or anything as long."""
    rng = random.Random(5)
    guess, other = ((Turn("system", prompt(rng, 400)), Turn("user", "is the pump on?")) for _ in range(2))

    def heard(theirs, owner):
        model, ours, events = load_slow(folder), Generation(job_id(), guess, 24, owner="guesser"), []
        model.start(Generation(job_id(), theirs, 60, owner=owner))
        for step in range(200):
            if step == 3:
                model.start(ours)
            events += [(step, replace(event, job_id="")) for event in model.step() if event.job_id == ours.job_id]
        return events

    assert isinstance(heard(guess, "line-3")[-1][1], Finished)
    assert heard(guess, "line-3") == heard(other, "line-3")
    assert heard(guess, "guesser") != heard(other, "guesser")
