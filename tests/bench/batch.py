"""Jobs that come together, over MQTT: many lanes with reuse of what prompts share ÷ one lane and nothing to share.

Two agents serve the same folder: one with `--jobs` lanes, one with a single lane. A round is so many jobs submitted at
once; its time runs from the first submission to the last result. Prompts have `--common` tokens in common and `--own`
of their own. For the single lane the first word of every prompt is another one, so that there is nothing to reuse.
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.client.client import EdgeClient
from edge_agent.engine.backend import backend_of
from tests.bench.rig import Figure, arguments, interleave, median, model_folder, report, rig, spread
from tests.running import requester

PATIENCE_S = 600.0
NUMBERS = itertools.count(1)
"""Never the same twice: no round finds what an earlier one left."""


@dataclass(frozen=True, slots=True)
class Round:
    """Jobs that were submitted at once, and how they went."""

    seconds: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    first_token_ms: tuple[float, ...]
    generate_per_s: tuple[float, ...]

    @property
    def per_s(self) -> float:
        return self.tokens / self.seconds


def words(count: int, start: int) -> str:
    """Return so many words of about a token each: two runs from different starts share none at one place."""
    return " ".join(str((start + step) % 10) for step in range(count))


def prompts(jobs: int, *, common: int, own: int, shared: bool) -> list[str]:
    """Return prompts that share their first part, or nothing at all."""
    stem = next(NUMBERS)
    beginnings = [stem] * jobs if shared else [next(NUMBERS) for _ in range(jobs)]
    return [
        f"{beginning:06d} {words(common // 2 - 4, beginning)} : {next(NUMBERS):06d} {words(own // 2 - 4, number)}"
        for number, beginning in enumerate(beginnings)
    ]


def run(client: EdgeClient, texts: list[str], tokens: int) -> Round:
    begun_s = time.monotonic()
    handles = [client.submit("edge-01", prompt=text, max_tokens=tokens, ttl_s=3600) for text in texts]
    results = [handle.result(PATIENCE_S) for handle in handles]
    seconds = time.monotonic() - begun_s
    for result in results:
        if result.state != "succeeded":
            raise RuntimeError(f"a job ended {result.state}: {result.error}")
    return Round(
        seconds,
        sum(result.usage.completion_tokens for result in results),
        sum(result.usage.prompt_tokens for result in results),
        sum(result.usage.prompt_tokens_details.cached_tokens for result in results),
        tuple(result.timings.first_token_ms for result in results),
        tuple(result.timings.generate_per_second for result in results),
    )


def measure(folder: Path, options) -> tuple[list[Figure], list[str]]:
    sizes = {"common": options.common, "own": options.own}
    seen: dict[str, list[Round]] = {"together": [], "apart": [], "alone": []}
    serve = {"context_tokens": options.context, "threads": options.threads or None}
    serve = {name: value for name, value in serve.items() if value is not None}
    with (
        rig(folder, parallel=options.jobs, **serve) as many,
        rig(folder, parallel=1, **serve) as single,
    ):
        many.start()
        single.start()
        with requester(many.broker) as crowd, requester(single.broker) as queue:

            def go(side: str, client: EdgeClient, *, jobs: int, shared: bool) -> float:
                done = run(client, prompts(jobs, shared=shared, **sizes), options.tokens)
                seen[side].append(done)
                return done.per_s

            go("together", crowd, jobs=options.jobs, shared=True)
            go("alone", queue, jobs=1, shared=False)
            for rounds in seen.values():
                rounds.clear()
            one_by_one = interleave(
                options.pairs,
                lambda _: go("together", crowd, jobs=options.jobs, shared=True),
                lambda _: go("alone", queue, jobs=options.alone, shared=False),
            )
            apart = [go("apart", crowd, jobs=options.jobs, shared=False) for _ in range(options.pairs // 2)]
            first = [first_token(queue, options) for _ in range(options.pairs // 2)]
    alone = [done.per_s for done in seen["alone"]]
    middle = sorted(alone)[len(alone) // 2]
    together = seen["together"]
    figures = [
        median("together, sharing ÷ one at a time", [a / b for a, b in one_by_one], "", at_least=3.0),
        median("together, sharing", [done.per_s for done in together], "tok/s out", at_least=48.0),
        median("together, nothing shared ÷ one at a time", [each / middle for each in apart], "", at_least=1.3),
        median("together, nothing shared", apart, "tok/s out"),
        median("one at a time", alone, "tok/s out"),
        median("one job: decode", [d for done in seen["alone"] for d in done.generate_per_s], "tok/s", at_least=16.5),
        median("first token, prefix warm ÷ cold", [warm / cold for cold, warm in first], "", at_most=0.25),
        *spread("first token, cold", [cold for cold, _ in first], "ms"),
        Figure("prompt tokens of a job", together[0].prompt_tokens / options.jobs, ""),
        Figure("of these reused, sharing", together[-1].cached_tokens / options.jobs, ""),
        Figure("of these reused, one at a time", seen["alone"][-1].cached_tokens / options.alone, ""),
    ]
    return figures, [f"{folder}, {backend_of(folder)}, {options.jobs} lanes, {options.pairs} pairs"]


def first_token(client: EdgeClient, options) -> tuple[float, float]:
    """Return the milliseconds to the first token of a prompt whose 512 first tokens are new, then of one with them."""
    stem, sizes = next(NUMBERS), []
    for own in (next(NUMBERS), next(NUMBERS)):
        done = run(client, [f"{stem:06d} {words(512 // 2 - 4, stem)} : {own:06d}"], 4)
        sizes.append(done.first_token_ms[0])
    return sizes[0], sizes[1]


def main() -> None:
    options = arguments(
        __doc__,
        model="full-openvino",
        jobs=8,
        common=192,
        own=32,
        tokens=32,
        pairs=10,
        alone=2,
        context=1024,
        threads=0,
    ).parse_args()
    figures, notes = measure(model_folder(options.model), options)
    report("Jobs that come together", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
