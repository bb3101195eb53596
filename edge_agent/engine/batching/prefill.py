"""How a prompt is cut into pieces, so that a cancel is heard and other streams go on in between (pure)."""

from collections.abc import Sequence

PIECE_S = 1.5
"""A piece should take no longer than this while others generate: it is how long their streams stall.

On two cores 32 tokens were computed at 41 tokens/s, 64 at 58 and 128 at 73: with 1 s, eight jobs that came together
had their own 38 tokens computed one after the other at the slowest of these.
"""
PIECE_ALONE_S = 3.0
"""The same while nobody else does: it is how late a cancel may be heard by the engine. Each piece reads all weights
once more, so fewer are faster: at 30 tokens/s a prompt of 70 tokens is one piece and not three."""
PIECE_TOKENS_MIN = 32
"""Smaller pieces cost speed: each one reads all weights once."""
PIECE_TOKENS_MAX = 512
"""Larger ones gain none, and the logits and attention scores of a piece grow with it."""
LONGROPE_TOKENS = 4097
"""The length at which Phi-3.5 changes its rotary factors: one more than the original context of its config.json.

The factors are chosen per call by the length reached, and keys computed with the short ones are wrong beyond. So the
first call of a prompt of this length or more must reach it, and when a *generated* text does, the whole sequence must
be computed again, in one call. Measured: cut so, the logits equal those of one call bit for bit or to the last digit;
cut otherwise, the text is another one.
"""


def piece_tokens(*, position: int, prompt_tokens: int, tokens_per_s: float | None, longrope: bool, alone: bool) -> int:
    """Return the number of tokens to compute next.

    `position` tokens are computed already; `tokens_per_s` is the speed of the last piece, None before the first;
    `alone` when no other sequence generates.
    """
    if longrope and position < LONGROPE_TOKENS <= prompt_tokens:
        return LONGROPE_TOKENS - position
    even = even_tokens(tokens_per_s=tokens_per_s, alone=alone)
    left = prompt_tokens - position
    return left if left < even + PIECE_TOKENS_MIN else even  # a short rest is not worth a piece of its own


def shared_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def even_tokens(*, tokens_per_s: float | None, alone: bool) -> int:
    """Return how many tokens of prompts should be computed in one call, whoever they belong to."""
    wanted = (tokens_per_s or 0.0) * (PIECE_ALONE_S if alone else PIECE_S)
    # Whole multiples, so that the library sees few different shapes and its memory arena stays small.
    return max(PIECE_TOKENS_MIN, min(int(wanted) // PIECE_TOKENS_MIN * PIECE_TOKENS_MIN, PIECE_TOKENS_MAX))
