"""What engines are measured with: prompts of a wanted length, alone or several at once, alike at first or not."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from edge_agent.engine.hosting.one_shot import OneShotEngine, Spell

SENTENCE = (
    "in hall two the pump runs well but its valve shows more heat than last week so check oil level and write down "
    "what you see then call a team that keeps watch over water lines now"
)
WORDS = tuple(SENTENCE.split())
QUESTIONS = (
    "Name three things that make a water pump run hot, and say why.",
    "The door of the cold store is open and the fan is off. What should be done first?",
    "Explain to a new worker how to read a pressure gauge.",
)
"""What settings are compared by: each has many good answers, so another arithmetic shows soon."""
ANSWER_TOKENS = 32
"""Of each of those answers."""
T = TypeVar("T")

ROW_S = 20.0
"""A row that has taken so long is not repeated any more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `common_tokens` of a prompt may be the same for all, `own_tokens` are each one's own."""

    common_tokens: int
    own_tokens: int
    answer_tokens: int
    jobs: tuple[int, ...]
    repeat: int

    @property
    def prompt_tokens(self) -> int:
        """Length of every prompt."""
        return self.common_tokens + self.own_tokens


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `name` carries its unit; no values where nothing could be measured."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float | None:
        """The middle value; None when there is none."""
        return statistics.median(self.values) if self.values else None


class WorkloadPrompts:
    """Prompts of about a wanted number of tokens, no two alike from the first word on."""

    def __init__(self, *, tokens_per_word: float, overhead_tokens: float) -> None:
        self._tokens_per_word = max(tokens_per_word, 0.1)
        self._overhead_tokens = overhead_tokens
        self._numbers = itertools.count(1)

    @classmethod
    def fitted(cls, trial: OneShotEngine) -> Self:
        """Learn from two prompts how many tokens a model makes of a word, and of what surrounds a prompt."""
        unfitted = cls(tokens_per_word=1.0, overhead_tokens=0.0)
        few, many = 4, 12
        low, high = (trial.ask([unfitted.fresh(count)], max_tokens=1)[0].prompt_tokens for count in (few, many))
        per_word = (high - low) / (many - few)
        return cls(tokens_per_word=per_word, overhead_tokens=low - few * per_word)

    def fresh(self, tokens: int) -> str:
        """Return a prompt that begins like no other."""
        return self._words(tokens - self._overhead_tokens)

    def following(self, beginning: str, own_tokens: int) -> str:
        """Return a prompt that begins as others do and goes on in its own way."""
        return f"{beginning} {self._words(own_tokens)}"

    def _words(self, tokens: float) -> str:
        number = next(self._numbers)
        stride = 1 + number % (len(WORDS) - 1)  # their count is prime: every stride runs through all of them
        count = max(1, round(tokens / self._tokens_per_word))
        words = (WORDS[(number + place * stride) % len(WORDS)] for place in range(1, count))
        return " ".join((f"{number}:", *words))


def answers(trial: OneShotEngine) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Return what an engine answers to the questions that settings are compared by."""
    return tuple(trial.ask([question], max_tokens=ANSWER_TOKENS)[0].text for question in QUESTIONS)


def decode_per_s(trial: OneShotEngine, plan: Plan) -> tuple[float, ...]:
    """Return the speed of single answers, one figure each."""
    prompts = WorkloadPrompts.fitted(trial)
    spells = repeated(lambda: trial.ask([prompts.fresh(plan.own_tokens)], max_tokens=plan.answer_tokens)[0], plan)
    return known(spell.decode_per_s for spell in spells)


def rows(
    trial: OneShotEngine, plan: Plan, prompts: WorkloadPrompts, *, tell: Callable[[str], None]
) -> tuple[Figure, ...]:
    """Return the figures of an engine. `tell` hears what is measured next."""
    beginning = prompts.fresh(plan.common_tokens)

    def cold(jobs: int) -> list[Spell]:
        return trial.ask([prompts.fresh(plan.prompt_tokens) for _ in range(jobs)], max_tokens=plan.answer_tokens)

    def warm(jobs: int) -> list[Spell]:
        texts = [prompts.following(beginning, plan.own_tokens) for _ in range(jobs)]
        return trial.ask(texts, max_tokens=plan.answer_tokens)

    tell("one answer at a time")
    alone = repeated(partial(cold, 1), plan)
    trial.ask([prompts.following(beginning, plan.own_tokens)], max_tokens=1)
    alone_warm = repeated(partial(warm, 1), plan)
    found = [
        Figure("prefill_tokens_per_s", known(each.prefill_per_s for (each,) in alone)),
        Figure("decode_tokens_per_s", known(each.decode_per_s for (each,) in alone)),
        Figure("first_token_cold_ms", known(_ms(each.first_token_s) for (each,) in alone)),
        Figure("first_token_warm_ms", known(_ms(each.first_token_s) for (each,) in alone_warm)),
        Figure("prompt_tokens", tuple(float(each.prompt_tokens) for (each,) in alone)),
        Figure("reused_tokens_warm", tuple(float(each.cached_tokens) for (each,) in alone_warm)),
    ]
    for jobs in plan.jobs:
        tell(f"{jobs} at once")
        runs = alone if jobs == 1 else repeated(partial(cold, jobs), plan)
        warm_runs = alone_warm if jobs == 1 else repeated(partial(warm, jobs), plan)
        found += [
            Figure(out_name(jobs, common=False), known(map(out_per_s, runs))),
            Figure(out_name(jobs, common=True), known(map(out_per_s, warm_runs))),
        ]
    return tuple(found)


def out_name(jobs: int, *, common: bool) -> str:
    """Return the name of the row with what so many jobs at once get out together."""
    return f"out_tokens_per_s_{jobs}_jobs" + ("_common_beginning" if common else "")


def out_per_s(spells: Sequence[Spell]) -> float | None:
    """Return the tokens per second of answers asked for together, from the asking to the end of the last."""
    took_s = max(spell.ended_s for spell in spells) - min(spell.begun_s for spell in spells)
    return sum(spell.tokens for spell in spells) / took_s if took_s > 0 else None


def repeated(run: Callable[[], T], plan: Plan, *, now_s: Callable[[], float] = time.monotonic) -> list[T]:
    """Run as often as planned, but begin no new run after ROW_S."""
    end_s = now_s() + ROW_S
    results = [run()]
    while len(results) < plan.repeat and now_s() < end_s:
        results.append(run())
    return results


def known(values: Iterable[float | None]) -> tuple[float, ...]:
    """Return the values there are."""
    return tuple(value for value in values if value is not None)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
