"""From an engine's start to its being ready: the first time, with nothing of the model in memory, and the second.

What the kernel keeps of the files is dropped before every first start, as after a boot. `--cache` gives OpenVINO a
folder for what it compiles, which the library calls CACHE_DIR: empty before every first start.
"""

import os
import tempfile
from pathlib import Path

from edge_agent.engine.backend import ModelSpec, backend_of
from edge_agent.engine.hosting.one_shot import OneShotEngine
from hardware.probe import probe
from tests.bench.rig import Figure, arguments, median, model_folder, report

CONTEXT_TOKENS = 1024


def forget(folder: Path) -> None:
    """Have the kernel drop what it keeps of a folder's files."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ready_s(folder: Path, options: dict[str, str]) -> float:
    spec = ModelSpec(folder, backend_of(folder), CONTEXT_TOKENS, 1, probe().cpu.granted_cores or 1, options=options)
    with OneShotEngine(spec) as trial:
        return trial.ready_s


def main() -> None:
    options = arguments(__doc__, model="full-openvino", pairs=3, cache=0).parse_args()
    folder = model_folder(options.model)
    first, second, kept_mib = [], [], 0.0
    for _ in range(options.pairs):
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            told = {"CACHE_DIR": name} if options.cache else {}
            forget(folder)
            first.append(ready_s(folder, told))
            second.append(ready_s(folder, told))
            kept_mib = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()) / 2**20
    figures: list[Figure] = [
        median("ready, first start", first, "s"),
        median("ready, second start", second, "s"),
        median("second ÷ first", [b / a for a, b in zip(first, second, strict=True)], "", at_most=0.5),
        Figure("kept of what was compiled", kept_mib, "MiB"),
    ]
    report("First and second start", figures, as_json=options.json, notes=[f"{folder}, {options.pairs} pairs"])


if __name__ == "__main__":
    main()
