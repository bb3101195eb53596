"""How the next token is chosen from logits."""

from collections import Counter

import numpy as np
import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.batching.sampling import Sampler
from edge_agent.engine.messages import Generation, JobId

LOGITS = np.log(np.array([0.4, 0.05, 0.3, 0.05, 0.2], np.float32))


def sampler(prompt=(), **options):
    generation = Generation(JobId("1.1"), (), 8, **{"temperature": 1.0, "seed": 1} | options)
    return Sampler(generation, np.array(prompt, np.int32), vocab_size=5)


def shares(chooser, draws=4000, **options):
    """Return how often each token is chosen, in tenths."""
    counts = Counter(chooser.choose(LOGITS, **options) for _ in range(draws))
    return {token: round(10 * count / draws) for token, count in counts.items() if count > draws / 50}


def test_tokens_come_as_often_as_the_model_says():
    """Temperature 1, no limit."""
    found = shares(sampler())
    assert [found[token] for token in (0, 2, 4)] == [4, 3, 2]
    assert set(found) == set(range(5))


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"top_k": 2}, {0, 2}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 2}),
        ({"top_p": 0.0}, {0}),
        ({"top_k": 3, "top_p": 0.75}, {0, 2}),
        ({"top_k": 1}, {0}),
        ({"temperature": 0.0, "top_p": 0.1}, {0}),
        ({"temperature": 1e-300}, {0}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
    ],
    ids=str,
)
def test_limits_leave_the_likeliest(options, tokens):
    """`top_p` counts what `top_k` left: of 0.9 the first two are 0.78."""
    assert set(Counter(map(sampler(**options).choose, [LOGITS] * 2000))) == tokens


def test_a_low_temperature_favours_the_likeliest():
    assert shares(sampler(temperature=0.5))[0] > shares(sampler())[0] > shares(sampler(temperature=3.0))[0]


def test_only_what_is_allowed_is_chosen():
    allowed = np.array([False, True, False, True, False])
    assert set(shares(sampler(), allowed=allowed)) == {1, 3}
    assert sampler(temperature=0.0).choose(LOGITS, allowed) == 1
    assert set(shares(sampler(top_k=4), allowed=allowed)) == {1, 3}


def test_what_was_said_is_made_less_likely():
    """In the prompt or before; positive logits shrink, negative ones grow, as the field has it."""
    logits = np.array([2.0, 1.5, -1.0, -1.5, -9.0], np.float32)
    chooser = sampler([0], temperature=0.0, repetition_penalty=2.0)
    assert [chooser.choose(logits) for _ in range(3)] == [1, 0, 0]
    negative = np.array([-1.0, -1.5, -9.0, -9.0, -9.0], np.float32)
    assert sampler([0], temperature=0.0, repetition_penalty=2.0).choose(negative) == 1


def test_a_seed_fixes_the_choice():
    """Any whole number is one; none is another each time."""
    seeds = (3, 3, 4, -5, 2**70 + 1, None, None)
    drawn = [tuple(map(sampler(seed=seed).choose, [LOGITS] * 40)) for seed in seeds]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == len(seeds) - 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_that_computes_no_numbers_says_nothing(bad):
    with pytest.raises(EdgeAgentError, match="no numbers") as raised:
        sampler().choose(np.array([1, bad, 0, 0, 0], np.float32))
    assert raised.value.code is Code.MODEL_ERROR
