"""The parent's end of the image child: gives it one image at a time, waits no longer than a bound, replaces it."""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_agent.base.awake import awake_s
from edge_agent.base.disposable import Disposable, GoneError
from edge_agent.base.log import get_logger

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

log = get_logger()


class BadImageError(Exception):
    """The image cannot be taken; the message says why, as the rest of a sentence about it."""


class FullError(Exception):
    """There is no room on the disk for the decoded image."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image: its size upright and as written, and the hash of what was written."""

    width: int
    height: int
    used_width: int
    used_height: int
    sha256: str


def bound_bytes(pixels: int) -> int:
    """Return the memory of a child that decodes images of so many pixels; the kernel gives it no more."""
    return LIBRARIES_BYTES + BYTES_PER_PIXEL * pixels


class DecoderProcess:
    """Decodes images in a child that is started when there is one; `close` ends it. For one thread.

    The child lives at most as long as its standard input, which is ours. `pixels` bounds an image.
    """

    def __init__(
        self,
        *,
        pixels: int,
        image_s: float = IMAGE_S,
        command: tuple[str, ...] = (sys.executable, "-m", "edge_agent.images.decoder_child"),
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        bounds = {"--pixels": pixels, "--memory": bound_bytes(pixels), "--seconds": CPU_S}
        bounded = (*command, *(word for name, bound in bounds.items() for word in (name, str(bound))))
        self._image_s = image_s
        self._now_s = now_s
        self._child = Disposable(bounded, now_s=now_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        return self._child.pid

    def measure(self, file: Path) -> tuple[int, int]:
        """Return an image's width and height in pixels, upright as far as its beginning tells. Raises BadImageError."""
        answer = self._ask({"path": str(file)})
        return answer["width"], answer["height"]

    def develop(self, file: Path, *, long_side: int, out: Path) -> DecodedImage:
        """Decode an image to RGB bytes, no side over `long_side` pixels. Raises BadImageError, FullError."""
        return DecodedImage(**self._ask({"path": str(file), "long_side": long_side, "out": str(out)}))

    def close(self) -> None:
        """End the child, if there is one."""
        self._child.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer. A child that dies may have been killed for others: a second one is tried.

        Both have the time of one.
        """
        end_s = self._now_s() + self._image_s
        for _ in range(2):
            try:
                if self._child.served >= IMAGES_MAX:
                    self._child.close()
                answer = self._child.ask(order, end_s=end_s)
                break
            except TimeoutError:
                raise BadImageError(f"was not decoded after {self._image_s:.0f} s") from None
            except GoneError as error:
                reason = str(error)
                if reason == signal.SIGXCPU.name:
                    raise BadImageError("takes too long to decode") from None
                log.warning("images.died", reason=reason)
        else:
            raise BadImageError(f"ended the program that decodes images, twice ({reason})")
        if "fault" in answer:
            raise BadImageError(answer["fault"])
        if "full" in answer:
            raise FullError(answer["full"])
        return answer
