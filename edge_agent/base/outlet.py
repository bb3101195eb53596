"""Standard error of the daemon: takes what any thread or child writes, at once, and never fails.

A full disk, a reader that is gone or reads no more, a stopped terminal: what cannot be written then is lost, counted,
and said later. No thread waits for it, and none ends by it; nor does a child, whose libraries print as they like.
"""

import contextlib
import io
import os
import queue as stdlib_queue
import select
import sys
import threading
from collections.abc import Callable, Iterator

STDERR = 2
HELD_BYTES_MAX = 2**20
"""What may wait to be written: some thousand lines."""
HEARD_BYTES = 65_536
BATCH = 256
"""Pieces that are written at once."""
DRAIN_S = 1.0
"""How long the end of the process is put off for what still waits."""


class Outlet(io.TextIOBase):
    """A text stream onto a file descriptor, with a thread that writes, and one that hears what children print.

    `lost` is told on that thread, when lines go out again, how many did not. `write` is os.write.
    """

    def __init__(
        self, descriptor: int, *, lost: Callable[[int], None], write: Callable[[int, memoryview], int] = os.write
    ) -> None:
        self._descriptor = descriptor
        self._tell_lost = lost
        self._write = write
        self._lock = threading.RLock()  # a finalizer may write while its thread writes
        self._held_bytes = 0
        self._lost = 0
        self._torn = False
        self._pieces: stdlib_queue.SimpleQueue[bytes | threading.Event | None] = stdlib_queue.SimpleQueue()
        self._heard, self._theirs = os.pipe()
        os.set_blocking(self._theirs, False)
        for work, name in ((self._run, "stderr"), (self._hear, "stderr-children")):
            threading.Thread(target=work, name=name, daemon=True).start()

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return a descriptor for children to write to, who do not wait either."""
        return self._theirs

    def isatty(self) -> bool:
        """Return whether a terminal shows it."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Take text, to be written soon; while too much waits it is lost."""
        self._take(text.encode(errors="backslashreplace"))
        return len(text)

    def _take(self, piece: bytes) -> None:
        with self._lock:
            if self._held_bytes + len(piece) > HELD_BYTES_MAX:
                self._lost += piece.count(b"\n")
            else:
                self._held_bytes += len(piece)
                self._pieces.put(piece)

    def drain(self, timeout_s: float) -> None:
        """Wait until what was written so far is out, or lost, but no longer than this."""
        reached = threading.Event()
        self._pieces.put(reached)
        reached.wait(timeout_s)

    def close(self) -> None:
        """End its threads, after what was written so far, and when the last child has ended."""
        if not self.closed:
            self._pieces.put(None)
            os.close(self._theirs)
        super().close()

    # The threads

    def _hear(self) -> None:
        while piece := os.read(self._heard, HEARD_BYTES):
            self._take(piece)
        os.close(self._heard)

    def _run(self) -> None:
        batch: list[bytes | threading.Event | None] = []
        while None not in batch:
            batch = [self._pieces.get()]
            with contextlib.suppress(stdlib_queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._pieces.get_nowait())
            data = b"".join(piece for piece in batch if isinstance(piece, bytes))
            if data:
                self._hand_on(data)
            for piece in batch:
                if isinstance(piece, threading.Event):
                    piece.set()

    def _hand_on(self, data: bytes) -> None:
        """Write it; what does not go is counted, and what follows begins on a line of its own."""
        left = self._written(memoryview(b"\n" + data if self._torn else data))
        with self._lock:
            self._held_bytes -= len(data)
            self._torn = bool(left)
            lost, self._lost = (0, self._lost + bytes(left).count(b"\n")) if left else (self._lost, 0)
        if lost:
            self._tell_lost(lost)

    def _written(self, data: memoryview) -> memoryview:
        """Write as much as goes, however long that takes; return what does not go."""
        try:
            while data:
                try:
                    data = data[self._write(self._descriptor, data) :]
                except BlockingIOError:  # somebody who shares the file made it so
                    ready = select.poll()
                    ready.register(self._descriptor, select.POLLOUT)
                    ready.poll()
        except OSError:
            pass
        return data


@contextlib.contextmanager
def standard_error(*, lost: Callable[[int], None]) -> Iterator[None]:
    """Let what this process writes to standard error go through an outlet: its log, warnings, tracebacks."""
    _occupy()
    before, outlet = sys.stderr, Outlet(STDERR, lost=lost)
    sys.stderr = outlet
    try:
        yield
    finally:
        sys.stderr = before
        outlet.drain(DRAIN_S)
        outlet.close()


def for_children() -> int | None:
    """Return where children shall write their standard error; None where they inherit ours."""
    return sys.stderr.fileno() if isinstance(sys.stderr, Outlet) else None


def drain() -> None:
    """Let what was written to standard error go out, if it goes soon: the process ends now."""
    if isinstance(sys.stderr, Outlet):
        sys.stderr.drain(DRAIN_S)


def _occupy() -> None:
    """Open what is closed of the first three descriptors, or a file that is opened next would get what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
