"""How a prompt is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.engine.batching.prefill import (
    LONGROPE_TOKENS,
    PIECE_ALONE_S,
    PIECE_S,
    PIECE_TOKENS_MAX,
    PIECE_TOKENS_MIN,
    piece_tokens,
)


def pieces(prompt_tokens, *, tokens_per_s=None, longrope=True, alone=False):
    """Return the sizes of all pieces of a prompt."""
    sizes = []
    while (position := sum(sizes)) < prompt_tokens:
        sizes.append(
            piece_tokens(
                position=position,
                prompt_tokens=prompt_tokens,
                tokens_per_s=tokens_per_s,
                longrope=longrope,
                alone=alone,
            )
        )
    return sizes


@pytest.mark.parametrize(
    ("tokens_per_s", "size"),
    [
        (None, PIECE_TOKENS_MIN),
        (3.0, PIECE_TOKENS_MIN),
        (100.0, 128),
        (1e6, PIECE_TOKENS_MAX),
    ],
)
def test_a_piece_takes_about_one_and_a_half_seconds(tokens_per_s, size):
    """The last speed decides, within bounds; unknown speed is taken for a slow one."""
    assert pieces(4000, tokens_per_s=tokens_per_s)[0] == size


@given(
    prompt_tokens=st.integers(1, 3 * LONGROPE_TOKENS),
    tokens_per_s=st.none() | st.floats(0, 1e4),
    longrope=st.booleans(),
    alone=st.booleans(),
)
def test_pieces_make_up_the_prompt(prompt_tokens, tokens_per_s, longrope, alone):
    """They add up exactly, and none takes longer than it may, but the one that longrope needs whole."""
    sizes = pieces(prompt_tokens, tokens_per_s=tokens_per_s, longrope=longrope, alone=alone)
    assert sum(sizes) == prompt_tokens
    whole = longrope and prompt_tokens >= LONGROPE_TOKENS
    piece_s = PIECE_ALONE_S if alone else PIECE_S
    bound = max(PIECE_TOKENS_MIN, min((tokens_per_s or 0) * piece_s, PIECE_TOKENS_MAX))
    *first, last = sizes[1 if whole else 0 :] or [0]
    assert all(0 < size <= bound for size in first)
    assert last < bound + PIECE_TOKENS_MIN


def test_a_short_prompt_is_one_piece_on_an_idle_engine():
    """Each piece reads all weights once more; nobody waits for its end but its own requester."""
    assert pieces(70, tokens_per_s=30.0, alone=True) == [70]
    assert pieces(100, tokens_per_s=30.0) == [32, 32, 36]


def test_a_prompt_beyond_the_original_context_reaches_beyond_it_at_once():
    """Else its first keys would be computed with the factors of short texts."""
    assert pieces(LONGROPE_TOKENS + 10)[0] == LONGROPE_TOKENS
    assert pieces(LONGROPE_TOKENS)[0] == LONGROPE_TOKENS
    assert pieces(LONGROPE_TOKENS - 1)[0] == PIECE_TOKENS_MIN
    assert pieces(LONGROPE_TOKENS + 10, longrope=False)[0] == PIECE_TOKENS_MIN
