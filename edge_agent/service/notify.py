"""The service manager: readiness, a status line, the watchdog, time. Does nothing where there is none."""

import contextlib
import os
import socket
from collections.abc import Mapping

SEND_S = 5.0
"""How long a manager that does not read is waited for, with what is said once; it hears the rest the next time."""


class Notifier:
    """Speaks sd_notify(3) over the socket named in `NOTIFY_SOCKET`; never raises: no work depends on being heard."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(microseconds) / 1e6 if microseconds.isdigit() and ours else None
        """How often the manager wants to hear of us, in seconds; None: not at all."""
        self._last_status = ""

    def ready(self) -> None:
        """Say that start-up is over."""
        self._send("READY=1", wait_s=SEND_S)

    def stopping(self) -> None:
        """Say that we are on our way out."""
        self._send("STOPPING=1", wait_s=SEND_S)

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for so much time from now on, while we start or stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def status(self, line: str) -> None:
        """Show a line in `systemctl status`, when it is a new one."""
        line = " ".join(line.split())
        if line != self._last_status and self._send(f"STATUS={line}"):
            self._last_status = line

    def _send(self, text: str, *, wait_s: float = 0.0) -> bool:
        """Return whether the manager has it."""
        if not self._address:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(wait_s)
            return sock.sendto(text.encode(), self._address) > 0
        return False
