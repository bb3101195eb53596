"""The control socket: one question a connection, for root and the agent's own user.

Few connections and little time for each: who sends rubbish, or nothing, or reads nothing, costs a place for seconds and
nobody else anything. What is asked of the queue is answered on the store's thread like any other.
"""

import contextlib
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.small_server import SmallServer
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.messages import ASK_BYTES_MAX, Ask, AskState, Reply, Standing, decode_ask
from edge_agent.jobs.job import Failure
from edge_agent.jobs.store import Store
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus

NAME = "control.sock"
CONNECTIONS_MAX = 8
"""At once; for a further one the oldest of those gives way that have not asked yet."""
WAITING_MAX = 64
"""Connections the kernel keeps for us; it refuses more."""
PATIENCE_S = 5.0
"""From connection to question, and from answer to its last byte."""
STORE_S = 10.0
"""How long a full disk may keep a question; the asker is told then."""

log = get_logger()


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[str]:
    """Give the socket's address in a folder: short, however long the folder's name (an address holds 107 bytes)."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


class ControlServer:
    """Listens in the agent's state folder, which it has for itself."""

    def __init__(
        self,
        folder: Path,
        *,
        store: Store,
        desk: JobAdmin,
        order: Callable[[ModelOrder], OrderStatus | OrderResult],
    ) -> None:
        self._folder = folder
        self._store = store
        self._desk = desk
        self._order = order
        self._server: _ControlSocket | None = None
        self._stopping = threading.Event()
        self._one_at_a_time = threading.Lock()
        self.beat = Heartbeat("control")
        self._thread = threading.Thread(target=self._run, name="control")
        self._state: Callable[[], Standing]

    def start(self, state: Callable[[], Standing]) -> None:
        """Begin to listen, unless the folder's file system has no sockets: jobs go on without."""
        self._state = state
        try:
            self._server = _ControlSocket(self._folder, self._answer)
        except OSError as error:
            log.error("control.deaf", reason=error.strerror, next="edge-agent jobs works once the agent is stopped")
            return
        self._thread.start()

    def stop(self) -> None:
        """Hang up on everybody, remove the socket and end."""
        self._stopping.set()
        if self._server is None:
            return
        self._server.wake()
        self._thread.join()
        with contextlib.suppress(OSError), beside(self._folder) as address:  # nobody listens there any more
            os.unlink(address)  # noqa: PTH108 - see `_ControlSocket`

    def _run(self) -> None:
        if self._server is not None:
            self._server.serve(self._stopping, self.beat)
        self.beat.over()

    # On the thread of a connection

    def _answer(self, line: bytes) -> Reply:
        try:
            return self._answered(decode_ask(line))
        except EdgeAgentError as error:
            return Reply(error=Failure.of(error))

    def _answered(self, ask: Ask) -> Reply:
        """Return the answer. Raises EdgeAgentError."""
        if isinstance(ask, AskState):
            with self._one_at_a_time:
                return Reply(state=self._state())
        if isinstance(ask, ModelOrder):
            return Reply(order=self._order(ask))
        try:
            reply, afterwards = self._store.ask(lambda queue: self._desk.answer(queue, ask), timeout_s=STORE_S)
        except TimeoutError:
            raise self._late() from None
        log.info("control.answered", op=ask.op)
        afterwards()
        return reply

    def _late(self) -> EdgeAgentError:
        trouble = self._store.trouble
        why = f"{trouble.trouble}; {trouble.mend}" if trouble else "the disk is slow"
        return EdgeAgentError(Code.STORAGE_FULL, f"{why}; what was asked may still be done then")


class _ControlSocket(SmallServer):
    """Takes the place of the socket of a dead agent, for the folder is ours alone."""

    address_family = socket.AF_UNIX
    request_queue_size = WAITING_MAX
    connections_max = CONNECTIONS_MAX
    connection_s = PATIENCE_S
    thread_name = "control-caller"

    def __init__(self, folder: Path, answer: Callable[[bytes], Reply]) -> None:
        self._folder = folder
        self.answer = answer
        super().__init__(NAME, _Caller)

    def server_bind(self) -> None:
        with beside(self._folder) as address:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address)  # noqa: PTH108 - of the folder that is open
            self.socket.bind(address)
            os.chmod(address, 0o600)  # noqa: PTH101 - see above; nobody can connect before it listens

    def handle_timeout(self) -> None:
        """Listen anew where somebody has removed the socket; when that cannot be, try at the next look."""
        if (self._folder / NAME).exists():
            return
        removed, self.socket = self.socket, socket.socket(self.address_family)
        try:
            self.server_bind()
            self.server_activate()
        except OSError:
            removed, self.socket = self.socket, removed
        else:
            log.warning("control.anew", reason=f"somebody removed {NAME}")
        removed.close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        uid = struct.unpack("3i", request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]
        if not allowed(uid, own_uid=os.geteuid()):
            log.warning("control.refused", uid=uid)
            return False
        return super().verify_request(request, client_address)


class _Caller(socketserver.StreamRequestHandler):
    server: _ControlSocket

    def handle(self) -> None:
        line = self.rfile.readline(ASK_BYTES_MAX + 1)
        if line.endswith(b"\n") or len(line) > ASK_BYTES_MAX:
            self.server.prolong(self.request, STORE_S + PATIENCE_S)
            self.wfile.write(self.server.answer(line.removesuffix(b"\n")).encode() + b"\n")


def allowed(uid: int, *, own_uid: int) -> bool:
    """Return whether a user may ask: root and the agent's own."""
    return uid in (0, own_uid)
