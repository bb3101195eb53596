"""Where a process spends its time, by py-spy (an optional program: without it there is no profile)."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RATE_HZ = 200


def find_py_spy() -> str | None:
    """Return the program, from PATH or beside this interpreter."""
    beside = Path(sys.executable).with_name("py-spy")
    return shutil.which("py-spy") or (str(beside) if beside.exists() else None)


@contextmanager
def profiled(pid: int, folder: Path) -> Iterator[list[str]]:
    """Sample who holds the interpreter while the block runs; yields the lines of a report, complete when it has ended.

    The process is not paused for a sample: a few are lost, but what is measured stays nearly what it was.
    """
    lines: list[str] = []
    program = find_py_spy()
    if program is None:
        lines.append("no profile: py-spy is not installed; install it with: pip install py-spy")
        yield lines
        return
    stacks = folder / "stacks.txt"
    options = ["--pid", str(pid), "--format", "raw", "--output", str(stacks), "--rate", str(RATE_HZ), "--threads"]
    options += ["--gil", "--nonblocking"]
    with (folder / "py-spy.log").open("wb") as log:
        sampler = subprocess.Popen([program, "record", *options, "--duration", "600"], stdout=log, stderr=log)
    try:
        yield lines
    finally:
        sampler.send_signal(2)
        sampler.wait(60)
    lines += shares(stacks.read_text(encoding="utf-8")) if stacks.exists() else ["no profile: py-spy said nothing"]


def shares(stacks: str, *, most: int = 15) -> list[str]:
    """Return the threads and, within them, the functions with their share of all samples, self and with callees."""
    threads: Counter[str] = Counter()
    alone: Counter[tuple[str, str]] = Counter()
    whole: Counter[tuple[str, str]] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = [_plain(frame) for frame in stack.split(";")]
        if not frames:
            continue
        threads[thread] += int(count)
        alone[thread, frames[-1]] += int(count)
        for frame in set(frames) - {frame for frame in frames if "threading.py" in frame}:
            whole[thread, frame] += int(count)
    total = max(1, sum(threads.values()))
    shown = [f"{100 * count / total:5.1f} %  thread {thread}" for thread, count in threads.most_common()]
    shown += ["with callees:"] + [f"{100 * n / total:5.1f} %  {t}: {f}" for (t, f), n in whole.most_common(3 * most)]
    return shown + ["alone:"] + [f"{100 * n / total:5.1f} %  {t}: {f}" for (t, f), n in alone.most_common(most)]


def _plain(frame: str) -> str:
    """Return a frame as `function (file)`, whatever line it was at; thread names lose their number."""
    if frame.startswith("thread ("):
        return frame.split(": ", 1)[-1]
    function, _, place = frame.rpartition(" (")
    return f"{function} ({place.rsplit(':', 1)[0].rstrip(')')})" if function else frame
