"""A window into a running agent: whoever connects to a socket in its folder is told how it is.

One line of JSON, then the end. The socket belongs to the agent's user, and so does what it shows.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.mqtt.payloads import Payload, Telemetry

NAME = "status.sock"
PATIENCE_S = 5.0
"""How long somebody may take to read, or the agent to tell."""
STATE_BYTES_MAX = 2**20


class AgentState(Payload):
    """How the agent is now, as its presence says; `telemetry` is the last there was, at most a period old."""

    agent: str
    version: str
    pid: int
    health: str
    reasons: tuple[str, ...] = ()
    connected: bool
    telemetry: Telemetry | None = None


class Window:
    """Tells everybody in turn. Raises OSError when there can be no socket in the folder."""

    def __init__(self, folder: Path, *, state: Callable[[], AgentState]) -> None:
        self._folder = folder
        self._state = state
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._run, name="status")
        (folder / NAME).unlink(missing_ok=True)  # of an agent that was killed; the folder is ours alone
        with _beside(folder) as address:
            self._socket.bind(address)
        (folder / NAME).chmod(0o600)
        self._socket.listen()

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """Tell nobody any more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        (self._folder / NAME).unlink(missing_ok=True)

    def _run(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:  # stopped
                return
            with visitor, contextlib.suppress(OSError):  # who does not wait for the answer gets none
                visitor.settimeout(PATIENCE_S)
                visitor.sendall(self._state().encode())


def look(folder: Path) -> AgentState | None:
    """Return how the agent of a state folder is; None when none runs there.

    Raises EdgeAgentError when we may not look or are told nothing.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        try:
            with _beside(folder) as address:
                sock.connect(address)
            told = bytearray()
            while (piece := sock.recv(65_536)) and len(told) < STATE_BYTES_MAX:
                told += piece
            return AgentState.model_validate_json(bytes(told))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            sentence = f"{folder} is another user's; run this as the agent's user or with sudo"
            raise EdgeAgentError(Code.INTERNAL, sentence) from None
        except (OSError, ValueError) as error:
            sentence = f"the agent did not answer ({type(error).__name__}); try again, see its log"
            raise EdgeAgentError(Code.INTERNAL, sentence) from None


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[str]:
    """Yield an address in a folder: a socket's may have 107 bytes only, and a folder's path more."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{NAME}"
    finally:
        os.close(handle)
