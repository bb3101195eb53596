"""Guides for a LaneModel: which tokens may come next, by llguidance, the library that onnxruntime-genai has inside."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt
from llguidance.gbnf_to_lark import gbnf_to_lark

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides import guide as bounds
from edge_agent.engine.guides.burden import GuideAllowance
from edge_agent.engine.guides.grammar import rewritten
from edge_agent.engine.messages import Guide, GuideKind


def _from_ebnf(text: str) -> str:
    """Translate a grammar to the library's notation. Raises EdgeAgentError BAD_REQUEST with the reason."""
    try:
        # Of a longer number the library's translator drops the leading zeros.
        return llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(rewritten(text, "\\x{:02x}".format)))
    except Exception as error:  # it raises the class itself
        said = _QUOTED.sub("…", str(error).partition(" at line ")[0])
        raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {said[:_REASON_CHARACTERS]}; mend it") from error


_GRAMMARS: Mapping[GuideKind, Callable[[str], str]] = {
    # Each space costs a token, and a weak model writes spaces until its tokens are used up.
    GuideKind.JSON_SCHEMA: lambda text: llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(bounds.asked_schema(text)), overrides={"whitespace_pattern": r"[ \n]"}
    ),
    GuideKind.REGEX: llguidance.LLMatcher.grammar_from_regex,
    GuideKind.GRAMMAR: _from_ebnf,
}
_LIMITS = llguidance.LLParserLimits(verbose_errors=False)
"""The library's defaults: of an ambiguous grammar they let it take up to 2.7 s over one token's choice (EPYC, a
vocabulary of 32,064)."""
KEPT = 32
"""Compiled guides that are kept: some take tens of milliseconds, none more than a few MB."""
_POSITION = re.compile(r"^(at )?\d+\(\d+\): ")
_QUOTED = re.compile(r"""("[^"]*"|'[^']*'|`[^`]*`)""")
_WORD_BITS = 32
_REASON_CHARACTERS = 200


class Constraint:
    """What may come next in one guided text."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._words = np.zeros(-(-vocab_size // _WORD_BITS), np.uint32)
        self._allowance = GuideAllowance()
        self._taken_s = 0.0

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the end of the turn."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which tokens may be next, shape [vocabulary]; ends of the turn are among them where the text may end.

        Raises EdgeAgentError BAD_REQUEST when the guide is too hard to follow.
        """
        began_s = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        self._check()
        if self._allowance.spent(self._taken_s + time.thread_time() - began_s):
            raise EdgeAgentError(Code.BAD_REQUEST, bounds.TOO_SLOW)
        bits = np.unpackbits(self._words.view(np.uint8), count=self._vocab_size, bitorder="little")
        if not bits.any():
            raise EdgeAgentError(Code.BAD_REQUEST, "response_format: nothing may follow what was said; mend it")
        return bits.astype(np.bool_)

    def take(self, token: int) -> None:
        """Go on to the token after this one. Raises EdgeAgentError BAD_REQUEST as `allowed` does."""
        began_s = time.thread_time()
        self._matcher.consume_token(token)
        self._check()
        self._taken_s = time.thread_time() - began_s

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EdgeAgentError(Code.BAD_REQUEST, f"response_format: {_reason(self._matcher.get_error())}; mend it")


class Guides:
    """Compiles guides for a model's vocabulary; the last KEPT are kept."""

    keeps = False

    def __init__(self, tokens: llguidance.LLTokenizer, *, vocab_size: int) -> None:
        self._tokens = tokens
        self._vocab_size = vocab_size
        self._kept = lru_cache(KEPT)(self._compiled)

    @classmethod
    def read(cls, folder: Path, *, vocab_size: int, end_ids: Sequence[int]) -> "Guides":
        """Return those for a folder's tokenizer.json. Raises EdgeAgentError MODEL_ERROR when it cannot be read."""
        try:
            tokens = llguidance.LLTokenizer(str(folder / "tokenizer.json"), n_vocab=vocab_size, eos_token=list(end_ids))
        except ValueError as error:
            raise EdgeAgentError(
                Code.MODEL_ERROR, f"tokenizer.json in {folder} is of no use for guides; fetch the model again"
            ) from error
        return cls(tokens, vocab_size=vocab_size)

    def constraint(self, guide: Guide) -> Constraint:
        """Compile a guide and find what may come first; that takes a fraction of a second at most.

        Raises EdgeAgentError BAD_REQUEST with the reason when that fails, and as `guide.check` does.
        """
        return Constraint(self._kept(guide).deep_copy(), self._vocab_size)

    def follow(self, guide: Guide, go_on: Callable[[], bool]) -> None:
        """Compile a guide and choose tokens by it at random; calls `go_on` after each step, until that says no.

        Raises what `constraint` does.
        """
        constraint = self.constraint(guide)
        chance, ends = np.random.default_rng(1), self._tokens.eos_tokens
        while go_on() and not constraint.complete:
            allowed = constraint.allowed()
            allowed[ends] = False
            if not allowed.any():
                return
            constraint.take(int(chance.choice(np.flatnonzero(allowed))))

    def _compiled(self, guide: Guide) -> Any:
        """Return what follows a guide, at its beginning."""
        bounds.check(guide)
        try:
            grammar = _GRAMMARS[guide.kind](guide.text)
        except ValueError as error:
            raise EdgeAgentError(Code.BAD_REQUEST, "response_format: the schema must be an object") from error
        matcher = llguidance.LLMatcher(self._tokens, grammar, log_level=0, limits=_LIMITS)
        Constraint(matcher, self._vocab_size).allowed()
        return matcher


def _reason(error: str) -> str:
    """Return what the library says of a guide, in one line and without the guide itself."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it cannot be followed"]
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    said = _QUOTED.sub("…", _POSITION.sub("", said))
    said = re.split("[\"'`]|[.:] | /", said)[0].strip(" .:")[:_REASON_CHARACTERS]
    return said if " " in said else "it cannot be followed"  # a single word is a name in the library
