"""Memory of an engine ÷ what was predicted for it, with one lane filled to the end of its context.

Reads the child's anonymous memory every 50 ms while it computes one prompt that leaves 16 tokens of its context.
"""

import threading
from pathlib import Path
from typing import Self

import psutil

from edge_agent.engine.backend import backend_of
from edge_agent.models.memory import needed, read_build
from tests.bench.rig import Figure, arguments, model_folder, report, rig
from tests.running import requester

ANSWER_TOKENS = 16
PATIENCE_S = 3600.0
SAMPLE_S = 0.05
WORD = " pump"


class Peak(threading.Thread):
    """The most anonymous memory a process was seen to hold."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(name="peak", daemon=True)
        self._status = Path(f"/proc/{process.pid}/status")
        self._done = threading.Event()
        self.bytes = self.now()

    def now(self) -> int:
        (line,) = (line for line in self._status.read_text("ascii").splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self.bytes = max(self.bytes, self.now())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._done.set()
        self.join()


def measure(folder: Path, context_tokens: int) -> tuple[int, int, int]:
    """Return the bytes when loaded and at most, and the prompt tokens that took them there."""
    with rig(folder, context_tokens=context_tokens) as made:
        made.start()
        (engine,) = made.agent.engines()
        with requester(made.broker) as client, Peak(engine) as peak:
            loaded_bytes = peak.bytes
            words = context_tokens
            while True:  # the tokenizer's own count says how many words are too many
                ended = client.submit(
                    "edge-01", prompt=WORD * words, max_tokens=ANSWER_TOKENS, ttl_s=PATIENCE_S, timeout_s=PATIENCE_S
                ).result(PATIENCE_S)
                if ended.error is None or ended.error.code != "prompt_too_long":
                    break
                tokens = int(ended.error.message.split(" has ")[1].split()[0])
                words -= max(1, -(-(tokens - context_tokens + ANSWER_TOKENS) * words // tokens))
            if ended.state != "succeeded":
                raise RuntimeError(f"the job ended {ended.state}: {ended.error}")
            return loaded_bytes, peak.bytes, ended.usage.prompt_tokens


def main() -> None:
    options = arguments(__doc__, model="full", contexts="1024,4096,8192").parse_args()
    folder = model_folder(options.model)
    build = read_build(folder, backend_of(folder))
    if build is None:
        raise SystemExit(f"{folder} does not tell its sizes")
    figures, notes = [], []
    for context_tokens in map(int, options.contexts.split(",")):
        loaded_bytes, peak_bytes, prompt_tokens = measure(folder, context_tokens)
        predicted = needed(build, device="cpu", context_tokens=context_tokens, parallel=1).bytes
        figures += [
            Figure(f"context {context_tokens}: predicted ÷ measured", predicted / peak_bytes, ""),
            Figure(f"context {context_tokens}: measured peak", peak_bytes / 2**20, "MiB"),
            Figure(f"context {context_tokens}: measured after the load", loaded_bytes / 2**20, "MiB"),
        ]
        notes.append(f"context {context_tokens}: a prompt of {prompt_tokens} tokens")
    report("Memory of an engine", figures, as_json=options.json, notes=[str(folder), *notes])


if __name__ == "__main__":
    main()
