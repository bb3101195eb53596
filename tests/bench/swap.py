"""Text and vision in memory for one of them: mixed jobs ÷ the ideal order, and what a swap costs.

The agent may hold one model at a time. The ideal order is all text jobs, one swap, all vision jobs. The same jobs in
random order, arriving over the first half of that time, are what is compared; before each the text model is loaded.
Vision jobs have an image of one tile, new each time. Then text is loaded and unloaded `--loads` times.
"""

import io
import random
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

from edge_agent.client.client import EdgeClient
from edge_agent.models.choose import free_bytes
from edge_agent.protocol.payloads import Result
from hardware import memory
from tests.bench.rig import Figure, Rig, arguments, model_folder, percentile, report, rig, spread
from tests.running import requester, wait_for

PATIENCE_S = 1800.0
MIB = 2**20


def picture(number: int) -> bytes:
    """Return an image that no other number has."""
    image = Image.new("RGB", (336, 336), (number % 256, number // 256 % 256, 99))
    ImageDraw.Draw(image).ellipse((84, 84, 252, 252), fill=(255, number % 256, 0))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


class Jobs:
    """Sends jobs of both kinds, none twice."""

    def __init__(self, client: EdgeClient, tokens: int) -> None:
        self._client, self._tokens, self._number = client, tokens, 0

    def send(self, kind: str):
        self._number += 1
        images = [picture(self._number)] if kind == "vision" else []
        prompt = f"{self._number:06d} What is on the belt?"
        return self._client.submit(
            "edge-01", model=kind, prompt=prompt, images=images, max_tokens=self._tokens, ttl_s=3600, timeout_s=3600
        )


def done(handles: Sequence) -> list[Result]:
    results = [handle.result(PATIENCE_S) for handle in handles]
    for result in results:
        if result.state != "succeeded":
            raise RuntimeError(f"a job ended {result.state}: {result.error}")
    return results


def in_order(jobs: Jobs, texts: int, visions: int) -> float:
    """Return the seconds that the ideal order takes."""
    begun_s = time.monotonic()
    done([jobs.send("text") for _ in range(texts)])
    done([jobs.send("vision") for _ in range(visions)])
    return time.monotonic() - begun_s


def mixed(jobs: Jobs, texts: int, visions: int, *, over_s: float, seed: int) -> tuple[float, list[Result]]:
    """Return the seconds that the same jobs take in random order, arriving over so many seconds; and their results."""
    kinds = ["text"] * texts + ["vision"] * visions
    random.Random(seed).shuffle(kinds)
    begun_s = time.monotonic()
    handles = []
    for number, kind in enumerate(kinds):
        time.sleep(max(0.0, begun_s + over_s * number / len(kinds) - time.monotonic()))
        handles.append(jobs.send(kind))
    results = done(handles)
    return time.monotonic() - begun_s, results


def loads(side: Rig, client: EdgeClient, times: int) -> list[Figure]:
    """Load and unload text so often; return what that takes and whether memory comes back."""
    agent = psutil.Process(side.agent.pid)
    took_s, sizes, left = [], [], 0
    free = []
    for _ in range(times):
        took_s.append(client.admin("edge-01", "load", "text").result(PATIENCE_S).took_s or 0.0)
        client.admin("edge-01", "unload", "text").result(PATIENCE_S)
        left += sum("edge_agent.engine.child" in child.cmdline() for child in side.agent.engines())
        sizes.append(agent.memory_info().rss / MIB)
        free.append(psutil.virtual_memory().available / MIB)
    return [
        *spread("an ordered load", took_s, "s"),
        Figure(f"engines left after {times} unloads", left, "", at_most=0),
        Figure("agent after the last ÷ after the first", sizes[-1] / sizes[0], "", at_most=1.05),
        Figure("agent after the last", sizes[-1], "MiB"),
        Figure("free memory lost from the first to the last", free[0] - free[-1], "MiB"),
    ]


def measure(options) -> tuple[list[Figure], list[str]]:
    text, vision = model_folder(options.text), model_folder(options.vision)
    half = int(0.6 * (free_bytes(memory.read(Path("/"))) or 0))
    table = {"context_tokens": 1024, "memory_bytes": half}
    beside = [{"name": "vision", "path": str(vision), "keep_alive_s": 3600.0, **table}]
    ratios, figures, notes = [], [], []
    with rig(text, beside=beside, extra=f"[models]\nturn_s = {options.turn}\n", name="text", **table) as side:
        side.start()
        with requester(side.broker) as client:
            jobs = Jobs(client, options.tokens)
            for seed in range(options.rounds):
                client.admin("edge-01", "load", "text").result(PATIENCE_S)
                ideal_s = in_order(jobs, options.texts, options.visions)
                client.admin("edge-01", "load", "text").result(PATIENCE_S)
                before = len(side.agent.said("engine.ready"))
                took_s, results = mixed(jobs, options.texts, options.visions, over_s=ideal_s / 2, seed=seed)
                swaps = len(side.agent.said("engine.ready")) - before
                ratios.append(ideal_s / took_s)
                waits = [(result.timings.queue_ms or 0.0) / 1000 for result in results if result.timings]
                figures += [
                    Figure(f"round {seed}: ideal order", ideal_s, "s"),
                    Figure(f"round {seed}: mixed, ideal ÷ this", ratios[-1], "", at_least=0.8),
                    Figure(f"round {seed}: mixed, swaps", swaps, ""),
                    Figure(f"round {seed}: longest wait of a job", percentile(waits, 100), "s"),
                ]
            for name in ("text", "vision"):
                ready = [each["load_ms"] / 1000 for each in side.agent.said("engine.ready") if each["model"] == name]
                figures.append(Figure(f"load of {name}, in the engine, median", percentile(ready, 50), "s"))
            if options.loads:
                figures += loads(side, client, options.loads)
            wait_for(lambda: not side.agent.said("engine.lost"), "no loss")
    notes.append(f"{text} and {vision}, turns of {options.turn} s, {options.texts} + {options.visions} jobs")
    return figures, notes


def main() -> None:
    options = arguments(
        __doc__,
        text="tiny",
        vision="tiny-vision",
        texts=400,
        visions=100,
        tokens=16,
        turn=10.0,
        rounds=3,
        loads=50,
    ).parse_args()
    figures, notes = measure(options)
    report("Text and vision in turns", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
