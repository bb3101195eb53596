"""A GGUF file's own tokenizer."""

import ctypes
import itertools
import re
from collections.abc import Mapping
from typing import Any

from edge_agent.engine.text.added_tokens import AddedTokens

UNKNOWN, CONTROL, USER_DEFINED, LSTRIP, RSTRIP = (1 << bit for bit in (0, 3, 4, 7, 8))
"""Attributes of tokens, llama.h's numbers."""
_SWALLOWING = {"phi3": ("<|assistant|>", "</s>")}
"""By architecture, after which tokens Phi-3.5's tokenizer takes none for white space. A GGUF file does not tell."""


class GgufTokenizer:
    """Makes token ids of texts, see TextTokenizer.

    `attributes` of those tokens that it obeys, by number. Of what a file calls user-defined, white space is none.
    """

    def __init__(self, file: Any, vocab: Any, attributes: Mapping[int, int], *, architecture: str) -> None:
        self._file = file  # its vocabulary goes with it
        self._call, self._vocab = file.library.functions, vocab
        texts = {each: self._call.llama_vocab_get_text(vocab, each).decode(errors="replace") for each in attributes}
        self._ids = {text: each for each, text in texts.items() if text.strip()}
        self._before = {texts[each] for each, told in attributes.items() if told & LSTRIP}
        self._after = {texts[each] for each, told in attributes.items() if told & RSTRIP}
        self._after.update(_SWALLOWING.get(architecture, ()))
        # The library splits texts at these, though it is told to obey none.
        always = [re.escape(text) for text, each in self._ids.items() if attributes[each] & USER_DEFINED]
        self._split = re.compile(f"(?<=(?={'|'.join(sorted(always, key=len, reverse=True))}).)") if always else None
        self.added = AddedTokens(self._ids)

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """Return the ids of a text; with `begin` as the file says that one begins."""
        parts = self.added.split(text)
        for at in range(1, len(parts), 2):
            if parts[at] in self._before:
                parts[at - 1] = parts[at - 1].rstrip()
            if parts[at] in self._after:
                parts[at + 1] = parts[at + 1].lstrip()
        found = ([self._ids[part]] if at % 2 else self._cut(part, begin=begin) for at, part in enumerate(parts))
        return [*itertools.chain.from_iterable(found)]

    def _cut(self, guarded: str, *, begin: bool) -> list[int]:
        text = self.added.plain(guarded)
        first, *others = self._split.split(text) if self._split else [text]
        return [*self._tokens(first, begin=begin), *itertools.chain.from_iterable(map(self._going_on, others))]

    def _going_on(self, text: str) -> list[int]:
        """Return the ids of a text that goes on: behind a line's end, for at a beginning some put a space before."""
        end, found = self._tokens("\n", begin=False), self._tokens(f"\n{text}", begin=False)
        return found[len(end) :] if found[: len(end)] == end else self._tokens(text, begin=False)

    def _tokens(self, text: str, *, begin: bool) -> list[int]:
        written = text.encode(errors="replace")
        if not written and not begin:
            return []
        room = (ctypes.c_int32 * (len(written) + 3))()  # a token a byte at most; a beginning, an end, a space before
        count = self._call.llama_tokenize(self._vocab, written, len(written), room, len(room), begin, False)
        return list(room[:count])
