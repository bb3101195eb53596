"""The first answer after a load and the ones after it, on the folder's backend: what the warm-up takes off a first job.

Behind the contract, in a process of its own for each load, without the agent: load, then the same question three times,
four tokens out, as the warm-up asks.
"""

import multiprocessing
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Failed, Finished, Generation, JobId, Turn
from hardware.probe import probe
from tests.bench.rig import arguments, median, model_folder, report

CONTEXT_TOKENS = 1024
ANSWERS = 3


def load(folder: Path, threads: int, line: Connection) -> None:
    """Load and answer; send the seconds of each."""
    name = backend.backend_of(folder)
    begun_s = time.monotonic()
    model = backend.find(name)(ModelSpec(folder, name, CONTEXT_TOKENS, 1, threads))
    took_s = [time.monotonic() - begun_s]
    with closing(model):
        for number in range(ANSWERS):
            begun_s = time.monotonic()
            model.start(Generation(JobId(str(number)), (Turn("user", f"Hello {number}"),), max_tokens=4))
            over = False
            while not over:
                for event in model.step():
                    over = over or isinstance(event, Finished | Failed)
            took_s.append(time.monotonic() - begun_s)
    line.send(took_s)


def main() -> None:
    options = arguments(__doc__, model="full-openvino", loads=3).parse_args()
    folder, threads = model_folder(options.model), probe().cpu.granted_cores or 1
    seen = []
    for _ in range(options.loads):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=load, args=(folder, threads, theirs))
        child.start()
        theirs.close()
        seen.append(ours.recv())
        child.join()
    loads, first, *later = zip(*seen, strict=True)
    figures = [
        median("load", loads, "s"),
        median("first answer of four tokens", first, "s"),
        median("later ones", [each for column in later for each in column], "s"),
        median("first ÷ a later one", [a / b for a, b in zip(first, later[-1], strict=True)], ""),
    ]
    report("The first answer after a load", figures, as_json=options.json, notes=[f"{folder}, {options.loads} loads"])


if __name__ == "__main__":
    main()
