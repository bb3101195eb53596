"""Keys as they are pressed, read from the terminal itself."""

import codecs
import os
import re
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Self

AT_ONCE_BYTES = 1024
NAMED = {
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x15": "clear",
    "\x1b": "escape",
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1b[C": "right",
    "\x1b[D": "left",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
}
"""What a terminal sends for keys that are no letters (ECMA-48 and xterm); `ESC O` is the same as `ESC [`."""
_PRESS = re.compile(r"\x1b[\[O][0-9;]*[ -/]*[@-~]|[^\x1b]|\x1b", re.DOTALL)


def keys(text: str) -> list[str]:
    """Return what was pressed: letters as they are, other keys by name; unknown ones are left out (pure)."""
    pressed = (NAMED.get(each.replace("\x1bO", "\x1b["), each) for each in _PRESS.findall(text))
    return [each for each in pressed if each.isprintable()]


class Keyboard:
    """The terminal on standard input, letter by letter and without echo; as it was before at the end of the block."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def read(self, timeout_s: float) -> list[str]:
        """Wait for keys; return them, none when nobody pressed any. Raises EOFError when the terminal is gone."""
        ready, _, _ = select.select([self._file], [], [], timeout_s)
        if not ready:
            return []
        pressed = os.read(self._file, AT_ONCE_BYTES)
        if not pressed:
            raise EOFError
        return keys(self._decoder.decode(pressed))
