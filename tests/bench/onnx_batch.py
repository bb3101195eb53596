"""Jobs at once on the onnx backend: tokens per second out, and what a known beginning saves.

All prompts have a common beginning and an end of their own. Nothing but the loaded model is measured: no broker, no
socket. The first job of all computes the beginning; rounds after it find it, as an agent's jobs do that share their
system prompt. Loads the model once per number of jobs, as its lanes are made at the load.
"""

import itertools
import random
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from edge_agent.engine import backend
from edge_agent.engine.backend import LoadedModel, ModelSpec
from edge_agent.engine.messages import Failed, Finished, Generation, JobId, Turn
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, median, model_folder, report

_numbers = itertools.count(1)
_random = random.Random(7)


def digits(count: int) -> str:
    """Return a text of so many tokens: each digit is one."""
    return "".join(_random.choices("0123456789", k=count))


def generation(beginning: str, own_tokens: int, answer_tokens: int) -> Generation:
    turns = (Turn("system", beginning), Turn("user", digits(own_tokens)))
    # A repetition penalty of 1 and no stop string: random weights end early only by chance, and that is counted.
    return Generation(JobId(f"{next(_numbers)}.1"), turns, answer_tokens)


def run(model: LoadedModel, generations: Sequence[Generation]) -> tuple[float, list[Finished]]:
    """Run generations at once; return the seconds from the first start to the last end, and their ends."""
    begun_s = time.perf_counter()
    for each in generations:
        model.start(each)
    ended: list[Finished] = []
    while len(ended) < len(generations):
        for event in model.step():
            match event:
                case Finished():
                    ended.append(event)
                case Failed():
                    raise RuntimeError(event.message)
    return time.perf_counter() - begun_s, ended


def measure(folder: Path, options, jobs: int) -> list[Figure]:
    context_tokens = options.common + options.own + options.tokens + 64  # and the chat template
    spec = ModelSpec(folder, "onnx", context_tokens, jobs, options.threads)
    with closing(backend.find("onnx")(spec)) as model:
        run(model, [generation("Hello", 1, 4)])  # the first answer is slower; engines give theirs before they are ready
        beginning = digits(options.common)
        _, (cold,) = run(model, [generation(beginning, options.own, 1)])
        rates, cached, prompt_ms = [], [], []
        for _ in range(options.rounds):
            seconds, ended = run(model, [generation(beginning, options.own, options.tokens) for _ in range(jobs)])
            rates.append(sum(end.usage.completion_tokens for end in ended) / seconds)
            cached += [end.usage.cached_tokens for end in ended]
            prompt_ms += [end.prompt_ms for end in ended]
    return [
        median(f"{jobs} at once", rates, "tok/s"),
        Figure(f"{jobs} at once: prompt tokens reused, least", min(cached), f"of {cold.usage.prompt_tokens}"),
        Figure(f"{jobs} at once: first prompt", cold.prompt_ms, "ms"),
        median(f"{jobs} at once: prompts with a known beginning", prompt_ms, "ms"),
    ]


def main() -> None:
    options = arguments(
        __doc__, model="full", jobs="1,2,4,8", common=192, own=32, tokens=32, rounds=6,
        threads=probe().cpu.granted_cores,
    ).parse_args()  # fmt: skip
    folder = model_folder(options.model)
    figures = [figure for jobs in options.jobs.split(",") for figure in measure(folder, options, int(jobs))]
    notes = [
        f"{folder}, {options.threads} threads, {options.rounds} rounds",
        f"{options.common} common and {options.own} own tokens of prompt beside the template's, {options.tokens} out",
    ]
    report("Jobs at once on the onnx backend", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
