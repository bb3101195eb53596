"""What a loaded model is asked before it is ready, and what is thought of what it said (pure).

A device may load a build without a word and then talk nonsense, say something else each time, or lose itself in long
prompts only. So the same short question is asked twice, with one known answer where there is one; a device other than
the processor also gets it at the end of a prompt as long as it takes. What differs from the processor's words, where
those are known, fails as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from edge_agent.engine.messages import Canary

ANSWER_TOKENS = 12
REFERENCE_TOKENS = 4
"""So many first tokens must be the processor's: other rounding turns a text sooner or later, nonsense at once."""
BUDGET_S = 20.0
"""After the first answer, which also warms up, nothing is asked that is expected to take longer than what is left."""
TOKEN_S_MAX = 5.0
"""A token that takes longer on an accelerator is waited for in vain: no processor here is as slow."""
LONG_TOKENS_MIN = 256
"""A prompt that is no longer proves nothing that the short one did not."""
CHARACTERS_PER_TOKEN = 4
"""Of English text; a limit in tokens becomes one in characters by it, roughly."""
BEGINNING_CHARACTERS = 200
"""More than so many tokens of any language have."""
SHOWN_CHARACTERS = 60
LINE = "{number}. The pump in hall two runs well, its valve is dry and its oil is at the second mark.\n"


class Purpose(StrEnum):
    """What a question is for."""

    FIRST = "first"
    AGAIN = "again"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class NextQuestion:
    """What to ask next; `characters` bounds a LONG prompt besides what the model takes."""

    part: Purpose
    characters: int | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer: `beginning` is the text of its first REFERENCE_TOKENS tokens, `fault` why it failed, if it did."""

    part: Purpose
    text: str = ""
    beginning: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    took_s: float = 0.0
    fault: str = ""


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """Whether a model may serve on this device; `reason` says why not."""

    sound: bool
    reason: str = ""


def follow(
    canary: Canary, heard: Sequence[Heard], *, device: str, budget_s: float = BUDGET_S
) -> NextQuestion | CanaryVerdict:
    """Return what to ask after what was heard so far, or what is thought of it in the end."""
    if not heard:
        return NextQuestion(Purpose.FIRST)
    elsewhere = device != "cpu"
    reason = _unsound(canary, heard[-1], elsewhere=elsewhere) or _unsteady(heard)
    if reason:
        return CanaryVerdict(sound=False, reason=reason)
    left_s = budget_s - sum(each.took_s for each in heard[1:])
    if _repeatable(heard, left_s):
        return NextQuestion(Purpose.AGAIN)
    if elsewhere and heard[-1].part is not Purpose.LONG and (characters := _long(heard[0], left_s)):
        return NextQuestion(Purpose.LONG, characters)
    return CanaryVerdict(sound=True)


def beginning(pieces: Sequence[tuple[str, int]]) -> str:
    """Return the text of the first REFERENCE_TOKENS tokens of an answer, given as pieces and their tokens."""
    text, count = "", 0
    for piece, tokens in pieces:
        text, count = text + piece, count + tokens
        if count >= REFERENCE_TOKENS:
            break
    return text[:BEGINNING_CHARACTERS]


def long_prompt(canary: Canary, characters: int) -> str:
    """Return the question after so many characters of plain sentences."""
    lines: list[str] = []
    length = 0
    while length < characters:
        lines.append(LINE.format(number=len(lines) + 1))
        length += len(lines[-1])
    return f"{''.join(lines)}\n{canary.prompt}"


def _repeatable(heard: Sequence[Heard], left_s: float) -> bool:
    """Return whether the short question should be asked again: once, and once more when the answer was another one.

    What is kept of a prompt makes the second answer another computation than the first; the third is the second's.
    """
    answers = _answers(heard)
    if len(answers) == 1:
        return heard[0].took_s <= left_s
    return len(answers) == 2 and answers[0] != answers[1]


def _unsteady(heard: Sequence[Heard]) -> str:
    answers = _answers(heard)
    steady = len(answers) < 3 or len(set(answers)) < len(answers)
    return "" if steady else "it answered the same question in three ways, without chance"


def _answers(heard: Sequence[Heard]) -> list[str]:
    return [each.text for each in heard if each.part is not Purpose.LONG]


def _long(first: Heard, left_s: float) -> int:
    """Return how long a prompt can be computed in time, in characters; 0: not worth it."""
    per_s = first.prompt_tokens / first.prompt_s if first.prompt_s > 0 else float("inf")
    tokens = min(per_s * max(0.0, left_s), 2**20)
    return int(tokens) * CHARACTERS_PER_TOKEN if tokens >= LONG_TOKENS_MIN else 0


def _unsound(canary: Canary, heard: Heard, *, elsewhere: bool) -> str:
    """Return what is wrong with an answer; empty when nothing is."""
    after = f" after a prompt of {heard.prompt_tokens} tokens" if heard.part is Purpose.LONG else ""
    if heard.fault:
        return f"it does not answer{after}: {heard.fault}"
    if elsewhere and heard.part is Purpose.AGAIN and heard.took_s > TOKEN_S_MAX * max(1, heard.tokens):
        return f"it took {heard.took_s:.0f} s for {heard.tokens} tokens"
    said = f"asked {canary.prompt!r} it said {_shown(heard.text)}{after}"
    if canary.expected and (canary.after_long or not after):
        if not any(each.casefold() in heard.text.casefold() for each in canary.expected):
            return f"{said}, not {' or '.join(map(repr, canary.expected))}"
        if not _readable(heard.text):
            return f"{said}, which nobody can read"
    if elsewhere and not after and not _agree(heard.beginning, canary.reference):
        return f"{said}; on the processor it began with {_shown(canary.reference)}"
    return ""


def _agree(ours: str, theirs: str) -> bool:
    """Return whether one beginning is that of the other; an unknown one agrees with all."""
    return ours.startswith(theirs) or (bool(ours) and theirs.startswith(ours))


def _readable(text: str) -> bool:
    return all(each.isprintable() or each.isspace() for each in text) and "\N{REPLACEMENT CHARACTER}" not in text


def _shown(text: str) -> str:
    return ascii(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")
