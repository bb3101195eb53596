"""The guide child: compiles guides that come from anybody, and follows them a little, in a process that may die of it.

Run as `python -m edge_agent.engine.guides.child --backend NAME --path PATH --parent PID`. Says `{}` when it has the
vocabulary. Then reads a guide per line of JSON on standard input, answers each with a line on standard output, and
ends when its input does:

    {"kind": …, "text": …}  →  {"slowest_s": …, "kept_bytes": …}: processor seconds of the slowest step, the first of
        which is the compilation, and what an engine will keep of it
    the same  →  {"code": …, "message": …}: why an engine cannot take it

The libraries are those of the engine, the vocabulary is that of its model, so that what is seen here holds there.
"""

import argparse
import contextlib
import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from edge_agent.base.child_process import tie
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import Follower, follower_of
from edge_agent.engine.guides.guide import STEP_S
from edge_agent.engine.messages import Guide, GuideKind

NAME = "ea-guide"
CPU_S = 3
"""Processor time of one guide, after which the kernel ends this process; it counts whole seconds, so it may be one
less."""
MEMORY_BYTES = 256 * 2**20
"""Of a guide, beyond what this process takes before; a compiled one was seen to take 2 to 30 MB."""
KEPT_BYTES_MAX = 64 * 2**20
"""What an engine may keep of a compiled guide."""
GROWN_BYTES_MAX = 128 * 2**20
"""What libraries keep ends with this process: it ends itself when that is so much, and another is started."""
WALK_S = STEP_S
"""Processor time of all steps after the first; one may exceed it."""
WALK_STEPS = 64
OOM_SCORE = "1000"
"""The first to go when memory runs out: what it does is tried again."""


def main() -> int:
    """Serve until the input ends; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.engine.guides.child", description="try guides")
    parser.add_argument("--backend", required=True, help="name of the engine's backend")
    parser.add_argument("--path", type=Path, required=True, help="the model's folder or file")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    options = parser.parse_args()
    _settle(options.parent)
    said, sys.stdout = sys.stdout, sys.stderr  # libraries print where they like
    follower = follower_of(options.backend)(options.path)
    begun_bytes = _held_bytes("RssAnon:")
    said.write("{}\n")
    said.flush()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        _bound(seconds=CPU_S)
        answer = tried(follower, Guide(GuideKind(order["kind"]), order["text"]))
        said.write(json.dumps(answer) + "\n")
        said.flush()
        if _held_bytes("RssAnon:") - begun_bytes > GROWN_BYTES_MAX:
            break
    return 0


def tried(follower: Follower, guide: Guide) -> dict[str, Any]:
    """Return the answer on a guide."""
    watch, before_bytes = _Watch(), _held_bytes("RssAnon:")
    try:
        follower.follow(guide, watch)
    except EdgeAgentError as error:
        return {"code": error.code, "message": error.message}
    except MemoryError:
        return _too_large()
    kept_bytes = _held_bytes("RssAnon:") - before_bytes if follower.keeps else 0
    if kept_bytes > KEPT_BYTES_MAX:
        return _too_large()
    if watch.slowest_s > STEP_S:
        what = "compile" if watch.steps == 1 else "follow"
        sentence = f"response_format: a step of it takes over {STEP_S} s to {what} on this device; simplify it"
        return {"code": Code.BAD_REQUEST, "message": sentence}
    return {"slowest_s": watch.slowest_s, "kept_bytes": max(0, kept_bytes)}


def _too_large() -> dict[str, Any]:
    return {"code": Code.BAD_REQUEST, "message": "response_format: takes too much memory to compile; simplify it"}


class _Watch:
    """Takes the time of each step by the processor's clock, all threads together: others may be busy beside us."""

    def __init__(self) -> None:
        self.steps = 0
        self.slowest_s = 0.0
        self._compiled_s = 0.0
        self._last_s = time.process_time()

    def __call__(self) -> bool:
        now_s = time.process_time()
        self.slowest_s = max(self.slowest_s, now_s - self._last_s)
        self.steps += 1
        if self.steps == 1:
            self._compiled_s = now_s
        self._last_s = now_s
        return self.slowest_s <= STEP_S and self.steps <= WALK_STEPS and now_s - self._compiled_s < WALK_S


def _settle(parent: int) -> None:
    """Leave signals of the terminal to the parent, and the memory to others."""
    tie(parent, name=NAME)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")


def _bound(*, seconds: int) -> None:
    """Let the kernel end this process when it computes so much longer, and give it no more than a guide's memory.

    Of data only, as libraries reserve addresses that they never use.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_held_bytes("VmData:") + MEMORY_BYTES, hard))


def _held_bytes(field: str) -> int:
    """Return what this process holds, by a field of its status in proc(5)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    sys.exit(main())
