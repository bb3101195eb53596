"""Learns byte-pair merges from a text."""

import re
from collections import Counter
from itertools import pairwise


def learn_merges(text: str, most: int, *, start: str) -> tuple[tuple[str, str], ...]:
    """Learn at most so many byte-pair merges: always the commonest pair of neighbours within a word.

    Words are runs of letters, each preceded by `start`. Digits and punctuation never merge, so tokenizers
    that cut words in different ways still agree on the ids. Pairs that occur once are not worth a token.
    """
    words = Counter((start, *word) for word in re.findall(r"[A-Za-z]+", text))
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        (left, right), count = max(pairs.items(), key=lambda item: (item[1], item[0]), default=(("", ""), 0))
        if count < 2:
            break
        merges.append((left, right))
        words = Counter({_merged(word, left, right): count for word, count in words.items()})
    return tuple(merges)


def _merged(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == (left, right):
            merged[-1] = left + right
        else:
            merged.append(piece)
    return tuple(merged)
