"""The parent's end of the image child: gives it one image at a time, waits no longer than a bound, replaces it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_agent.awake import awake_s, wait_awake
from edge_agent.log import get_logger

IMAGE_S = 10.0
"""What one image may take, start of the child included: at most this long does anything wait for it."""
CPU_S = 10
"""Of processor time, for a decoder of several threads, or for a child whose parent is stopped."""
BYTES_PER_PIXEL = 9
"""Of an image that is decoded: in RGBA, its copy, a row's buffers."""
LIBRARIES_BYTES = 128 * 2**20
"""Of the program and its libraries: 34 MiB at rest."""
IMAGES_MAX = 200
"""After so many a child is replaced: what its libraries leak ends with it."""
ANSWER_BYTES_MAX = 4096

log = get_logger()


class BadImageError(Exception):
    """The image cannot be taken; the message says why, as the rest of a sentence about it."""


class FullError(Exception):
    """There is no room on the disk for the decoded image."""


class _GoneError(Exception):
    """The child ended under an image; the message says how."""


@dataclass(frozen=True, slots=True)
class Print:
    """A decoded image: its size upright and as written, and the hash of what was written."""

    width: int
    height: int
    used_width: int
    used_height: int
    sha256: str


def bound_bytes(pixels: int) -> int:
    """Return the memory of a child that decodes images of so many pixels; the kernel gives it no more."""
    return LIBRARIES_BYTES + BYTES_PER_PIXEL * pixels


class Darkroom:
    """Decodes images in a child that is started when there is one; `close` ends it. For one thread.

    The child lives at most as long as its standard input, which is ours. `pixels` bounds an image.
    """

    def __init__(
        self,
        *,
        pixels: int,
        image_s: float = IMAGE_S,
        command: tuple[str, ...] = (sys.executable, "-m", "edge_agent.jobs.images"),
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        bounds = {"--pixels": pixels, "--memory": bound_bytes(pixels), "--seconds": CPU_S}
        self._command = (*command, *(word for name, bound in bounds.items() for word in (name, str(bound))))
        self._image_s = image_s
        self._now_s = now_s
        self._child: subprocess.Popen[bytes] | None = None
        self._served = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid if self._child else None

    def measure(self, file: Path) -> tuple[int, int]:
        """Return an image's width and height in pixels, upright as far as its beginning tells. Raises BadImageError."""
        answer = self._ask({"path": str(file)})
        return answer["width"], answer["height"]

    def develop(self, file: Path, *, long_side: int, out: Path) -> Print:
        """Decode an image to RGB bytes, no side over `long_side` pixels. Raises BadImageError, FullError."""
        return Print(**self._ask({"path": str(file), "long_side": long_side, "out": str(out)}))

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):  # what was not written has nobody to read it
                    if pipe is not None:
                        pipe.close()
            self._child = None

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer. A child that dies may have been killed for others: a second one is tried.

        Both have the time of one.
        """
        end_s = self._now_s() + self._image_s
        for _ in range(2):
            try:
                answer = self._exchange(json.dumps(order).encode() + b"\n", end_s)
                break
            except _GoneError as error:
                reason = str(error)
                log.warning("images.died", reason=reason)
        else:
            raise BadImageError(f"ended the program that decodes images, twice ({reason})")
        if "fault" in answer:
            raise BadImageError(answer["fault"])
        if "full" in answer:
            raise FullError(answer["full"])
        return answer

    def _exchange(self, order: bytes, end_s: float) -> dict[str, Any]:
        child = self._present()
        try:
            os.write(child.stdin.fileno(), order)  # type: ignore[union-attr]  # a pipe; far below what it holds
            line = self._read(child.stdout.fileno(), end_s)  # type: ignore[union-attr]
            answer: dict[str, Any] = json.loads(line)
        except TimeoutError:
            self.close()
            raise BadImageError(f"was not decoded after {self._image_s:.0f} s") from None
        except (OSError, ValueError):
            reason = self._exit_reason(child)
            self.close()
            if reason == signal.SIGXCPU.name:
                raise BadImageError("takes too long to decode") from None
            raise _GoneError(reason) from None
        return answer

    def _present(self) -> subprocess.Popen[bytes]:
        if self._served >= IMAGES_MAX or (self._child is not None and self._child.poll() is not None):
            self.close()
        if self._child is None:
            self._served = 0
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # decoders complain there of what they read
                bufsize=0,
            )
        self._served += 1
        return self._child

    def _read(self, descriptor: int, end_s: float) -> bytes:
        """Return a line. Raises TimeoutError, OSError when the child has closed its end, ValueError for chatter."""
        line = b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while not line.endswith(b"\n"):
            left_s = end_s - self._now_s()
            if not wait_awake(lambda wait_s: bool(poll.poll(wait_s * 1000)), left_s, now_s=self._now_s):
                raise TimeoutError
            piece = os.read(descriptor, ANSWER_BYTES_MAX)
            line += piece
            if not piece or len(line) > ANSWER_BYTES_MAX:
                raise ValueError("no line")
        return line

    @staticmethod
    def _exit_reason(child: subprocess.Popen[bytes]) -> str:
        try:
            code = child.wait(0.5)
        except subprocess.TimeoutExpired:
            return "said something else"
        return signal.Signals(-code).name if code < 0 else f"exit {code}"
