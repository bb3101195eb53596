"""What is tried so that a build answers faster on a machine, and what of it is best (pure).

A walk: one setting of the library after the other, each value beside the best found so far. A value wins only when it
is faster beyond the noise, and when the texts are still those that plain arithmetic gives.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.engine.facts import THREADS, Axis
from edge_agent.engine.registry import backends, on
from hardware.machine import Machine

Options = Mapping[str, str]
"""Settings of a library, in its own spelling, and THREADS."""
Answer = tuple[tuple[str, int], ...]
"""A text as it came: pieces, and how many tokens each stands for."""

GAIN_MIN = 0.05
"""A setting must be faster by this share: between two loads of the same setting lie a few per cent."""
AGREE_TOKENS = 8
"""So many first tokens of an answer must be those of plain arithmetic, in more than half of the answers.

Rounding otherwise turns a text sooner or later, where two tokens are about as likely, and both texts have sense. What
differs from the very beginning, and for most prompts, is another model: gibberish.
"""
CACHE = ("f16",)
"""Precisions of the cache that do no harm. Four bits are tried only when asked for: a handful of first tokens, by which
settings are compared, says little of what they do to a long answer."""
CACHES = frozenset({"f32", "f16", "u4"})


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a setting: tokens per second of single answers, one figure per answer, and texts to compare.

    `fault` says why it does not run; then there are neither.
    """

    options: Options
    decode_per_s: tuple[float, ...] = ()
    answers: tuple[Answer, ...] = ()
    fault: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """The median; None when there is none."""
        return statistics.median(self.decode_per_s) if self.decode_per_s else None


@dataclass(frozen=True, slots=True)
class SettingVerdict:
    """What is thought of a setting. `agreeing_tokens`: the median of leading tokens as in plain arithmetic."""

    tried: Tried
    sound: bool
    remark: str
    agreeing_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """Every setting that was tried, in the order of trial, and the best; None when none is sound."""

    best: Tried | None
    verdicts: tuple[SettingVerdict, ...]


def axes(backend: str, device: str, machine: Machine, *, cache: tuple[str, ...] = CACHE) -> tuple[Axis, ...]:
    """Return what is worth trying, what gains most first. What the backend does on its own is not among it.

    `cache`: precisions of the cache of keys and values to try in place of 8 bits, where the library has them.
    """
    facts = backends().get(backend)
    filled = {THREADS: _threads(machine), facts.kv_option if facts else "": cache}
    fitting = (axis for axis in on(backend, device).axes if axis.fits(machine))
    found = (Axis(axis.option, axis.values or filled.get(axis.option, ())) for axis in fitting)
    return tuple(axis for axis in found if axis.values)


def _threads(machine: Machine) -> tuple[str, ...]:
    """Return other numbers of threads than the cores granted to us.

    One less leaves a core to the rest of the machine; half of many may do where memory is the limit; every logical
    processor, where a core has two and no quota stops them.
    """
    cpu = machine.cpu
    counts = {cpu.granted_cores - 1}
    if cpu.granted_cores >= 8:
        counts.add(cpu.granted_cores // 2)
    if cpu.quota_cores is None and cpu.granted_cores == cpu.physical_cores and cpu.logical_cpus:
        counts.add(cpu.logical_cpus)
    return tuple(str(count) for count in sorted(counts - {0, cpu.granted_cores}, reverse=True))


def plain(backend: str, device: str) -> Options | None:
    """Return the settings of plain arithmetic, whose texts the others' are compared with; None where it is default."""
    return on(backend, device).plain


def steps(along: Sequence[Axis], reference: Options | None) -> int:
    """Return how many settings a walk tries at most."""
    return 1 + (reference is not None) + sum(len(axis.values) for axis in along)


def walk(
    default: Options,
    along: Sequence[Axis],
    *,
    reference: Options | None,
    meaning: bool,
    attempt: Callable[[Options], Tried],
) -> Calibration:
    """Try the reference, the default, then value by value beside the best so far.

    The reference is a yardstick only. Without `meaning` in the weights texts are compared but decide nothing: with
    random ones every token is a tie.
    """
    verdicts: list[SettingVerdict] = []
    yardstick: tuple[Answer, ...] = ()
    if reference is not None:
        tried = attempt(reference)
        yardstick = tried.answers
        told = f"does not run: {tried.fault}" if tried.fault else "reference for the texts"
        verdicts.append(SettingVerdict(tried, not tried.fault, told))
    first = judge(attempt(default), yardstick, best=None, meaning=meaning)
    verdicts.append(first)
    if first.tried.fault and not yardstick:  # it is not the settings
        return Calibration(None, tuple(verdicts))
    best = first.tried if first.sound else None
    yardstick = yardstick or first.tried.answers
    for axis in along:
        base = (best or first.tried).options
        for value in axis.values:
            if base.get(axis.option) == value:
                continue
            verdict = judge(attempt({**base, axis.option: value}), yardstick, best=best, meaning=meaning)
            verdicts.append(verdict)
            if verdict.sound and (best is None or faster(verdict.tried, best)):
                best = verdict.tried
    return Calibration(best, tuple(verdicts))


def judge(tried: Tried, yardstick: tuple[Answer, ...], *, best: Tried | None, meaning: bool) -> SettingVerdict:
    """Say what is thought of a setting beside the best so far; an empty yardstick compares no texts."""
    if tried.fault:
        return SettingVerdict(tried, sound=False, remark=f"does not run: {tried.fault}")
    remark = "nothing to beat" if best is None else _gain(tried, best)
    if not yardstick:
        return SettingVerdict(tried, sound=True, remark=remark)
    agreed = [leading_tokens(*pair) for pair in zip(yardstick, tried.answers, strict=True)]
    median_tokens = statistics.median(agreed)
    if _same(agreed, yardstick):
        return SettingVerdict(tried, sound=True, remark=remark, agreeing_tokens=median_tokens)
    told = f"texts differ from the reference's after {median_tokens:g} tokens"
    told = f"turned down: {told}" if meaning else f"{remark}; {told}, as random weights may"
    return SettingVerdict(tried, sound=not meaning, remark=told, agreeing_tokens=median_tokens)


def _same(agreed: Sequence[int], yardstick: Sequence[Answer]) -> bool:
    """Return whether more than half of the answers begin as the reference's; see AGREE_TOKENS."""
    enough = [
        count >= min(AGREE_TOKENS, sum(tokens for _, tokens in answer))
        for count, answer in zip(agreed, yardstick, strict=True)
    ]
    return 2 * sum(enough) > len(enough)


def leading_tokens(reference: Answer, other: Answer) -> int:
    """Return how many first tokens of the reference stand for text that the other one has too."""
    ours, theirs = ("".join(text for text, _ in answer) for answer in (reference, other))
    differ = (place for place, (one, two) in enumerate(zip(ours, theirs, strict=False)) if one != two)
    same = next(differ, min(len(ours), len(theirs)))
    end = tokens = 0
    for text, count in reference:
        end += len(text)
        if end > same:
            break
        tokens += count
    return tokens


def faster(tried: Tried, best: Tried) -> bool:
    """Return whether a setting is faster beyond the noise: by GAIN_MIN, and in every one of its answers."""
    if not tried.decode_per_s or not best.decode_per_s:
        return bool(tried.decode_per_s)
    gain = statistics.median(tried.decode_per_s) / statistics.median(best.decode_per_s) - 1
    return gain >= GAIN_MIN and min(tried.decode_per_s) > max(best.decode_per_s)


def _gain(tried: Tried, best: Tried) -> str:
    if tried.tokens_per_s is None or best.tokens_per_s is None:
        return "not measured"
    gain = tried.tokens_per_s / best.tokens_per_s - 1
    if faster(tried, best):
        return f"{gain:.0%} faster"
    return f"{-gain:.0%} slower" if gain <= -GAIN_MIN else "no faster beyond the noise"
