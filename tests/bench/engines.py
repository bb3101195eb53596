"""Every installed engine on the same full-size weights, side by side: load, prompt, answer, eight jobs at once, memory.

The engines take turns, loaded one at a time, `--rounds` times over, so that a machine that drifts hits all alike. Each
runs as under the agent, in a child of its own, with the settings that the agent takes without a calibration. The same
random weights are in the format of each: int4, Q4_0, or unquantised for transformers and mlx.
"""

import importlib.util
from collections import defaultdict
from pathlib import Path

import psutil

from edge_agent.bench import workload
from edge_agent.bench.workload import Plan, WorkloadPrompts, out_name
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.one_shot import OneShotEngine
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, median, model_folder, report

ENGINES = {
    "onnx": ("onnxruntime_genai", "full"),
    "openvino": ("openvino_genai", "full-openvino"),
    "llamacpp": ("xllamacpp", "full-llamacpp"),
    "transformers": ("torch", "full-transformers"),
    "mlx": ("mlx_lm", "full-transformers"),
}
"""The library that each stands on, and its model."""
ROWS = {
    "load_s": ("load, with the first answer", "s"),
    "prefill_tokens_per_s": ("prompt", "tok/s"),
    "decode_tokens_per_s": ("answer", "tok/s"),
    "first_token_warm_ms": ("first token, beginning known", "ms"),
    "together": ("{} jobs, nothing shared", "tok/s out"),
    "together_common": ("{} jobs, common beginning", "tok/s out"),
    "resident_mib": ("memory, most resident", "MiB"),
    "anonymous_mib": ("memory, anonymous", "MiB"),
}


def measure(name: str, folder: Path, options) -> dict[str, float]:
    """Load an engine, measure it once, unload it; return its figures by the names of ROWS."""
    common, own = options.common, options.own
    plan = Plan(common, own, options.tokens, (1, options.jobs), repeat=1)
    spec = ModelSpec(folder, name, common + own + options.tokens + 64, options.jobs, probe().cpu.granted_cores)
    with OneShotEngine(spec) as trial:
        rows = workload.rows(trial, plan, WorkloadPrompts.fitted(trial), tell=lambda _what: None)
        (child,) = psutil.Process().children()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
        memory = {
            key: int(status[field].split()[0]) / 1024
            for key, field in (("resident", "VmHWM"), ("anonymous", "RssAnon"))
        }
        load_s = trial.ready.load_ms / 1000
    found = {row.name: row.median for row in rows if row.median is not None}
    found["together"] = found.get(out_name(options.jobs, common=False))
    found["together_common"] = found.get(out_name(options.jobs, common=True))
    return {**found, "load_s": load_s, **{f"{key}_mib": mib for key, mib in memory.items()}}


def main() -> None:
    options = arguments(__doc__, engines="", rounds=3, jobs=8, common=192, own=32, tokens=32).parse_args()
    chosen = options.engines.split(",") if options.engines else ENGINES
    absent = [name for name in chosen if importlib.util.find_spec(ENGINES[name][0]) is None]
    folders = {name: model_folder(ENGINES[name][1]) for name in chosen if name not in absent}
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, folder in folders.items():
            for row, value in measure(name, folder, options).items():
                seen[row, name].append(value)
    figures: list[Figure] = []
    for row, (title, unit) in ROWS.items():
        figures += [
            median(f"{title.format(options.jobs)}: {name}", seen[row, name], unit)
            for name in folders
            if seen[row, name]
        ]
    prompts = f"prompts of {options.common}+{options.own} tokens, {options.tokens} out, {options.rounds} rounds"
    notes = [prompts, *(f"{name} is not installed" for name in absent)]
    report("Engines side by side", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
