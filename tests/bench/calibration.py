"""What a calibration gains on a full-size model: its best settings ÷ ours ÷ those of the library alone, in turns.

The walk is that of `edge-agent bench`, with `--options` (`NAME=value,NAME=value`) it is left out. Then one engine per
setting stays loaded, each in a child of its own, and every round asks all of them in another order: single answers,
then `--jobs` at once with nothing in common. What the library does by itself is asked of the library.
"""

import importlib
import math
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

from edge_agent.base.errors import EdgeAgentError
from edge_agent.bench import calibrate, workload
from edge_agent.bench.bench import ROOM_TOKENS, in_words
from edge_agent.bench.calibrate import THREADS, Options, Tried
from edge_agent.bench.workload import Plan, WorkloadPrompts
from edge_agent.engine.backend import ModelSpec, backend_of
from edge_agent.engine.hosting.one_shot import OneShotEngine
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, median, model_folder, report

NAMES = {"decode": "one answer", "jobs": "{} jobs, nothing shared"}
SIDES = ("library", "ours", "calibrated")
ALONE = 3
"""Single answers of a round: their median counts."""
ASKED_OF_OPENVINO = ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION")


def of_library(backend: str) -> Options:
    """Return what a library does that is told nothing, as settings."""
    if backend != "openvino":
        return {THREADS: "0"} if backend == "onnx" else {}
    core = importlib.import_module("openvino").Core()
    told = {name: core.get_property("CPU", name) for name in ASKED_OF_OPENVINO}
    found = {
        name: value.get_type_name() if hasattr(value, "get_type_name") else str(value) for name, value in told.items()
    }
    return {**found, "KEY_CACHE_QUANT_MODE": "AUTO"}


def spec_of(folder: Path, options: Options, plan: Plan, *, parallel: int) -> ModelSpec:
    threads = int(options.get(THREADS, probe().cpu.granted_cores or 1))
    library = {name: value for name, value in options.items() if name != THREADS}
    context_tokens = plan.prompt_tokens + plan.answer_tokens + ROOM_TOKENS
    return ModelSpec(folder, backend_of(folder), context_tokens, parallel, threads, options=library)


def _heard(what: str) -> None:
    sys.stderr.write(f"{what}\n")
    sys.stderr.flush()


def walked(folder: Path, plan: Plan) -> tuple[Options, list[str]]:
    """Return the best settings found from ours, and what was tried."""

    def attempt(options: Options) -> Tried:
        _heard(f"tries {in_words(options)}")
        try:
            with OneShotEngine(spec_of(folder, options, plan, parallel=1)) as trial:
                tried = Tried(options, workload.decode_per_s(trial, plan), workload.answers(trial))
                _heard(f"{tried.tokens_per_s} tok/s")
                return tried
        except EdgeAgentError as error:
            return Tried(options, fault=error.message)

    along = calibrate.axes(backend_of(folder), "cpu", probe())
    found = calibrate.walk({}, along, reference=None, meaning=False, attempt=attempt)
    notes = [
        f"tried {in_words(each.tried.options)}: {each.tried.tokens_per_s or 0:.2f} tok/s, {each.remark}"
        for each in found.verdicts
    ]
    return found.best.options if found.best else {}, notes


def main() -> None:
    options = arguments(
        __doc__, model="full-openvino", pairs=3, jobs=8, common=192, own=32, tokens=32, options="walk",
    ).parse_args()  # fmt: skip
    folder = model_folder(options.model)
    plan = Plan(options.common, options.own, options.tokens, (1, options.jobs), ALONE)
    if options.options == "walk":
        best, notes = walked(folder, plan)
    else:
        best, notes = dict(each.split("=", 1) for each in options.options.split(",") if each), []
    settings = dict(zip(SIDES, (of_library(backend_of(folder)), {}, best), strict=True))
    seen: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in NAMES}
    with ExitStack() as stack:
        loaded = {
            in_words(each): stack.enter_context(OneShotEngine(spec_of(folder, each, plan, parallel=options.jobs)))
            for each in {in_words(each): each for each in settings.values()}.values()
        }
        prompts = {words: WorkloadPrompts.fitted(engine) for words, engine in loaded.items()}
        for pair in range(options.pairs):
            _heard(f"round {pair + 1}")
            for side in SIDES if pair % 2 else reversed(SIDES):
                words = in_words(settings[side])
                engine = loaded[words]
                seen["decode"][side].append(statistics.median(workload.decode_per_s(engine, plan)))
                asked = [prompts[words].fresh(plan.prompt_tokens) for _ in range(options.jobs)]
                together = workload.out_per_s(engine.ask(asked, max_tokens=plan.answer_tokens))
                seen["jobs"][side].append(together or math.nan)
    figures: list[Figure] = []
    for row, name in NAMES.items():
        by_side = seen[row]
        title = name.format(options.jobs)
        figures += [median(f"{title}: {side}", by_side[side], "tok/s") for side in SIDES]
        for base in SIDES[:2]:
            ratios = [best / other for best, other in zip(by_side["calibrated"], by_side[base], strict=True)]
            goal = {"at_least": 1.3} if (row, base) == ("decode", "library") else {}
            figures.append(median(f"{title}: calibrated ÷ {base}", ratios, "", **goal))
    notes += [f"{side}: {in_words(each)}" for side, each in settings.items()]
    report(
        "What a calibration gains", figures, as_json=options.json, notes=[f"{folder}, {options.pairs} pairs", *notes]
    )


if __name__ == "__main__":
    main()
