"""One answer at a time: an engine in its child beside the bare library's own loop, loaded in turns, `--rounds` times.

Both have the same model, threads, room and prompts of the same length; the libraries' idle threads disturb nobody,
for only one of the two is loaded at a time. `--backend` is onnx, openvino or llamacpp, `--model` a folder for it or a
name that `rig` knows.
"""

import statistics
from contextlib import closing

from edge_agent.bench.workload import WorkloadPrompts
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.one_shot import OneShotEngine
from hardware.probe import probe
from tests.bench.reference_loop import Bare
from tests.bench.rig import Figure, arguments, median, model_folder, report

ROOM_TOKENS = 64
ROWS = {
    "ready": "s",
    "prompt": "tok/s",
    "answer": "tok/s",
    "first token": "ms",
    "prompt and answer": "tok/s out",
}


def engine(spec: ModelSpec, options) -> tuple[dict[str, float | None], list[str]]:
    """Return the engine's figures by the names of ROWS, and prompts of the same length for the bare loop."""
    with OneShotEngine(spec) as one:
        prompts = WorkloadPrompts.fitted(one)
        ours, theirs = ([prompts.fresh(options.prompt) for _ in range(options.answers)] for _ in range(2))
        spells = [one.ask([text], max_tokens=options.tokens)[0] for text in ours]
        rows = (
            [one.ready_s],
            [each.prefill_per_s for each in spells],
            [each.decode_per_s for each in spells],
            [each.first_token_s * 1000 for each in spells],
            [each.tokens / (each.ended_s - each.begun_s) for each in spells],
        )
    return middle(rows), theirs


def bare(spec: ModelSpec, texts: list[str], options) -> dict[str, float | None]:
    """Return the bare loop's figures."""
    with closing(Bare(spec)) as loop:
        spells = [loop.ask(text, options.tokens) for text in texts]
        rows = (
            [loop.ready_s],
            [each.prefill_per_s for each in spells],
            [each.decode_per_s for each in spells],
            [each.first_token_s * 1000 for each in spells],
            [each.tokens / each.seconds for each in spells],
        )
    return middle(rows)


def middle(rows: tuple[list[float | None], ...]) -> dict[str, float | None]:
    known = ([value for value in row if value is not None] for row in rows)
    return {name: statistics.median(row) if row else None for name, row in zip(ROWS, known, strict=True)}


def main() -> None:
    granted = probe().cpu.granted_cores
    options = arguments(
        __doc__, model="full", backend="onnx", device="cpu", prompt=224, tokens=32, answers=3, rounds=6, threads=granted
    ).parse_args()
    room = options.prompt + options.tokens + ROOM_TOKENS
    spec = ModelSpec(model_folder(options.model), options.backend, room, 1, options.threads, device=options.device)
    found = []
    for _ in range(options.rounds):
        ours, texts = engine(spec, options)
        found.append((ours, bare(spec, texts, options)))
    figures: list[Figure] = []
    for name, unit in ROWS.items():
        pairs = [(ours[name], theirs[name]) for ours, theirs in found if ours[name] and theirs[name]]
        if pairs:
            goal = {"at_least": 0.98} if name == "prompt and answer" else {}
            figures += [
                median(f"{name}, engine ÷ bare loop", [ours / theirs for ours, theirs in pairs], "", **goal),
                median(f"{name}, engine", [ours for ours, _ in pairs], unit),
                median(f"{name}, bare loop", [theirs for _, theirs in pairs], unit),
            ]
    note = f"{spec.path}, {options.backend}, prompts of {options.prompt} tokens, {options.rounds} rounds"
    report("Beside the bare library", figures, as_json=options.json, notes=[note])


if __name__ == "__main__":
    main()
