"""The parent's end of one engine child: its process, its socket, and two threads so that a full pipe blocks nobody."""

import contextlib
import os
import queue as stdlib_queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from edge_agent.base.awake import awake_s, wait_awake
from edge_agent.base.log import get_logger
from edge_agent.base.outlet import for_children
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.hosting.work import EngineWork, WorkSnapshot
from edge_agent.engine.messages import (
    Cancel,
    Close,
    Command,
    Event,
    Finished,
    FrameReader,
    Guide,
    JobId,
    Load,
    LoadFailed,
    Message,
    Progress,
    Ready,
    Start,
    Trying,
    decode,
    encode,
)
from edge_agent.images.phi_tiling import grid

RECEIVE_BYTES = 65_536
GUIDES_BYTES_MAX = 192 * 2**20
"""Of compiled guides, less than what an engine's reservation has to spare (models/memory.py: RESERVE_BYTES)."""
SPEED_WEIGHT = 0.3
"""Share of the newest measurement in a running mean."""

log = get_logger()


class EngineProcess:
    """A running engine child; call `listen` once to talk with it.

    `tell` gets every message and `gone` the end of the process, both on the thread `engine-in`. Must be made on a
    thread that lives as long as the child shall: the child dies with the thread that made it. Raises OSError when the
    machine has no room for another process.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        tell: Callable[["EngineProcess", Event | Ready | LoadFailed], None],
        gone: Callable[["EngineProcess"], None],
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self.spec = spec
        self._tell = tell
        self._gone = gone
        self._now_s = now_s
        self._work = EngineWork(now_s)
        self.prefill_per_s: float | None = None
        """Prompt tokens computed in a second, a running mean; None before any were."""
        self.generate_per_s: float | None = None
        """Tokens generated in a second, likewise."""
        self._guides: dict[Guide, int] = {}
        self.finished = 0
        """Jobs that it has brought to their end."""
        self.ready: Ready | None = None
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.enter_context(ours)
            self._child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "edge_agent.engine.child"),
                    *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                stderr=for_children(),
            )
            unless_started.pop_all()
        self._outbox: stdlib_queue.SimpleQueue[bytes | None] = stdlib_queue.SimpleQueue()
        self._in = threading.Thread(target=self._receive, name="engine-in")
        self._out = threading.Thread(target=self._send, name="engine-out")
        self._outbox.put(
            encode(
                Load(
                    str(spec.path),
                    spec.backend,
                    spec.context_tokens,
                    spec.parallel,
                    spec.threads,
                    spec.device,
                    spec.options,
                    spec.canary,
                    spec.apart,
                )
            )
        )

    def listen(self) -> None:
        """Begin to talk with the child; callbacks come from now on."""
        self._in.start()
        self._out.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def held(self) -> WorkSnapshot:
        """Return how the work stands that it was given."""
        return self._work.held()

    @property
    def worn(self) -> bool:
        """Whether it keeps so many compiled guides that it should make way for another: its library drops none."""
        return sum(self._guides.values()) > GUIDES_BYTES_MAX

    def start(self, start: Start, *, kept_bytes: int = 0) -> None:
        """Give it a job, of whose guide it keeps so much."""
        if kept_bytes and start.generation.guide is not None:
            self._guides[start.generation.guide] = kept_bytes
        turns = start.generation.turns
        tokens = sum(len(turn.text) for turn in turns)  # a character is at least one
        tokens += sum(grid(each.width, each.height, tiles=each.tiles).tokens for turn in turns for each in turn.images)
        self._work.begin(start.generation.job_id, tokens)
        self.send(start)

    def cancel(self, job_id: JobId) -> None:
        """Ask it to stop a job."""
        self.send(Cancel(job_id))

    def send(self, command: Command) -> None:
        """Hand it a command; returns at once."""
        self._outbox.put(encode(command))

    def close(self, timeout_s: float) -> None:
        """Ask it to unload and exit; kill it when it does not."""
        self.send(Close())
        if not self.await_exit(timeout_s):
            log.warning("engine.killed", pid=self.pid, reason="did not exit in time")
        self.kill()

    def await_exit(self, timeout_s: float) -> bool:
        """Return whether it came to its own end in time, so that how it ended is not our doing."""

        def exits(patience_s: float) -> bool:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(patience_s)
            return self._child.returncode is not None

        return wait_awake(exits, timeout_s, now_s=self._now_s)

    def kill(self) -> None:
        """End it at once and wait until it is gone."""
        self._child.kill()
        self._child.wait()
        with contextlib.suppress(OSError):  # its end may live on in a process of its own: nobody waits for that one
            self._socket.shutdown(socket.SHUT_RDWR)
        self._outbox.put(None)
        self._in.join()
        self._out.join()
        self._socket.close()

    def exit_reason(self) -> str:
        """Return how it ended, as `exit 1` or `SIGKILL`; call after it has."""
        code = self._child.wait(timeout=10)
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    def anonymous_bytes(self) -> int | None:
        """Return the memory it holds that no file backs; None when it cannot be read."""
        return self._resident_bytes("RssAnon:")

    def mapped_bytes(self) -> int | None:
        """Return the memory it holds of files, which the kernel can take back; None when it cannot be read."""
        return self._resident_bytes("RssFile:")

    def _resident_bytes(self, field: str) -> int | None:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        sizes = (line.split()[1] for line in status.splitlines() if line.startswith(field))
        return next((int(size) * 1024 for size in sizes), None)

    def _send(self) -> None:
        while (frame := self._outbox.get()) is not None:
            try:
                self._socket.sendall(frame)
            except OSError:  # the child is gone, which engine-in sees too
                return

    def _receive(self) -> None:
        frames = FrameReader()
        while True:
            try:
                chunk = self._socket.recv(RECEIVE_BYTES)
            except OSError:
                break
            if not chunk:
                break
            try:
                messages = [decode(body) for body in frames.feed(chunk)]
            except (ValueError, KeyError, TypeError, AttributeError) as error:  # its memory is not what it was
                log.error("engine.garbled", pid=self.pid, error=type(error).__name__)
                self._child.kill()
                break
            for message in messages:
                self._take(message)
        self._gone(self)

    def _take(self, message: Message) -> None:
        self._work.heard(message)
        match message:
            case Trying():
                return
            case Progress(_, _, tokens, milliseconds) if tokens and milliseconds:
                self.prefill_per_s = _mean(self.prefill_per_s, tokens / milliseconds * 1000)
            case Finished(_, _, usage, _, generate_ms):
                self.finished += 1
                if usage.completion_tokens and generate_ms:
                    self.generate_per_s = _mean(self.generate_per_s, usage.completion_tokens / generate_ms * 1000)
            case Ready():
                self.ready = message
            case _:
                pass
        self._tell(self, message)  # type: ignore[arg-type]  # the child sends no commands


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + SPEED_WEIGHT * (newest - mean)
