"""What the benchmarks share: a broker with an agent, models to serve, honest figures, one way to print them.

Each benchmark runs from the repository's root as `python -m tests.bench.NAME`; `--json` prints for programs. Nothing
here asserts anything: a figure depends on the machine, and somebody reads it.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from edge_agent.base import log
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.synth import FULL, FULL_VISION, TINY_VISION, build_demo, build_text
from tests.running import AgentProcess

CONFIDENCE = 0.95
TELEMETRY_S = 10
"""The agent's own default; tests report more often."""
MODELS = {
    "tiny": build_text,
    "tiny-vision": lambda out: build_text(out, shape=TINY_VISION),
    "demo": build_demo,
    "full": lambda out: build_text(out, shape=FULL),
    "full-vision": lambda out: build_text(out, shape=FULL_VISION),
    "full-vision-openvino": lambda out: build_text(out, shape=FULL_VISION, backend="openvino", block_size=128),
    "full-llamacpp": lambda out: build_text(out, shape=FULL, backend="llamacpp"),
    "full-transformers": lambda out: build_text(out, shape=FULL, backend="transformers"),
    "full-openvino": lambda out: build_text(out, shape=FULL, backend="openvino", block_size=128),
}
"""What `--model` may be besides a folder: built once and kept in the user's cache.

Full ones take a minute and 2.3 to 3.2 GB, unquantised 15 GB.
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its unit; `low` and `high` bound the true median with CONFIDENCE where there were repetitions.

    `at_least` or `at_most` is the project's goal, if it has one.
    """

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most


def median(name: str, values: Sequence[float], unit: str, **goal: float) -> Figure:
    """Return the median with the interval between order statistics that holds the true one with CONFIDENCE.

    No shape of distribution is assumed: the number of values below the true median is binomial(n, 1/2). With fewer
    than 6 values no such interval exists, and none is given.
    """
    ordered = sorted(values)
    count, below, tail = len(ordered), 0, 0.5 ** len(ordered)
    while tail <= (1 - CONFIDENCE) / 2:
        below += 1
        tail += math.comb(count, below) * 0.5**count
    low, high = (ordered[below - 1], ordered[count - below]) if below else (None, None)
    return Figure(name, statistics.median(ordered), unit, low, high, **goal)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def spread(name: str, values: Sequence[float], unit: str, **goal: float) -> list[Figure]:
    """Return median, 95th percentile and maximum; the goal stands at the 95th: one pause decides a maximum."""
    return [
        Figure(f"{name}, median", percentile(values, 50), unit),
        Figure(f"{name}, p95", percentile(values, 95), unit, **goal),
        Figure(f"{name}, most", max(values), unit),
    ]


def interleave(pairs: int, first: Callable[[int], float], second: Callable[[int], float]) -> list[tuple[float, float]]:
    """Measure two things in turns, the first one first in every other pair, so that drift hits both alike.

    Both get the number of the pair.
    """
    measured = []
    for pair in range(pairs):
        if pair % 2:
            later, earlier = second(pair), first(pair)
            measured.append((earlier, later))
        else:
            measured.append((first(pair), second(pair)))
    return measured


def report(title: str, figures: Sequence[Figure], *, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print figures and what must be known to read them."""
    load = f"load average at the end: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores"
    show = as_data if as_json else as_text
    sys.stdout.write(show(title, figures, (*notes, load)) + "\n")


def as_data(title: str, figures: Sequence[Figure], notes: Sequence[str]) -> str:
    shown = [{k: v for k, v in asdict(figure).items() if v is not None} | {"met": figure.met} for figure in figures]
    return json.dumps({"title": title, "figures": shown, "notes": notes}, indent=2)


def as_text(title: str, figures: Sequence[Figure], notes: Sequence[str]) -> str:
    lines = [title, "=" * len(title)]
    for figure in figures:
        interval = "" if figure.low is None else f"  [{figure.low:.4g} … {figure.high:.4g}]"
        sign, goal = ("≥", figure.at_least) if figure.at_most is None else ("≤", figure.at_most)
        verdict = "" if goal is None else f"  goal {sign} {goal:g}: {'met' if figure.met else 'MISSED'}"
        lines.append(f"{figure.name:<44} {figure.value:>10.4g} {figure.unit}{interval}{verdict}")
    return "\n".join([*lines, *(f"- {note}" for note in notes)])


def arguments(description: str | None, **defaults: object) -> argparse.ArgumentParser:
    """Return a parser with `--json` and an option per keyword, of its default's type: `jobs=10` makes `--jobs`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=" ")
    return parser


def model_folder(model: str) -> Path:
    """Return the folder of a model: one of MODELS, built when it is not there yet, or a path."""
    if model not in MODELS:
        return Path(model)
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "edge-agent" / "bench" / model
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        MODELS[model](folder)
    return folder


@dataclass(frozen=True, slots=True)
class Rig:
    """A broker and an agent that is not started yet, in a folder that ends with them."""

    folder: Path
    broker: PrivateBroker
    agent: AgentProcess

    def start(self) -> psutil.Process:
        """Start the agent and wait until its link and its engines are there; return its process."""
        self.agent.start()
        self.agent.wait_said("link.up")
        self.agent.wait_said("engine.ready")
        return psutil.Process(self.agent.pid)


@contextmanager
def rig(
    model: Path,
    *,
    broker_settings: str = "",
    extra: str = "",
    beside: Sequence[Mapping[str, object]] = (),
    **serve: object,
) -> Iterator[Rig]:
    """Make a broker and an agent that serves one model, and those `beside` it.

    `serve` are further keys of its table, `extra` other tables.
    """
    log.configure(format="console", level="error")  # what this process's own clients say; the agent has its own log
    with tempfile.TemporaryDirectory(prefix="edge-agent-bench-") as name:
        folder = Path(name)
        served = {"name": "model", "path": str(model)} | serve
        with PrivateBroker(folder=folder / "broker", settings=broker_settings) as broker:
            agent = AgentProcess(
                folder=folder / "agent", broker=broker, models=[served, *beside], extra=extra, telemetry_s=TELEMETRY_S
            )
            try:
                yield Rig(folder, broker, agent)
            except Exception:
                sys.stderr.write(
                    f"the agent said last:\n{agent.log.read_text()[-2000:] if agent.log.exists() else ''}\n"
                )
                raise
            finally:
                if agent.process is not None and agent.process.poll() is None:
                    agent.stop()


def cpu_s(process: psutil.Process) -> float:
    """Return the processor seconds a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def wait_idle(process: psutil.Process, *, for_s: float = 1.0, most_s: float = 60.0) -> None:
    """Wait until a process has used less than 2 % of a core for so long; after `most_s` go on all the same."""
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        before_s = cpu_s(process)
        time.sleep(for_s)
        if cpu_s(process) - before_s < 0.02 * for_s:
            return
