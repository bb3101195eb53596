"""The control socket: one question a connection, for root and the agent's own user.

One thread with few connections, little memory and little time for each: who sends rubbish, or nothing, or reads
nothing, costs a slot for seconds and nobody else anything. A question is answered on the store's thread like any other.
"""

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import IDLE_S, Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.messages import ASK_BYTES_MAX, Ask, AskState, Reply, Standing, decode_ask
from edge_agent.jobs.job import Failure
from edge_agent.jobs.store import Store
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus

NAME = "control.sock"
CONNECTIONS_MAX = 8
"""At once; the next waits, unseen, until one of them is done or its time is over."""
WAITING_MAX = 64
"""Connections the kernel keeps for us; it refuses more."""
PATIENCE_S = 5.0
"""From connection to question, and from answer to its last byte."""
HURRY_S = 0.5
"""The same while all places are taken and others may wait for one."""
PAUSE_S = 0.5
"""So long nobody is let in after somebody could not be: without a descriptor for them they would be tried without end.
"""
STORE_S = 10.0
"""How long a full disk may keep a question; the asker is told then."""
STEP_BYTES = 65_536

log = get_logger()


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[str]:
    """Give the socket's address in a folder: short, however long the folder's name (an address holds 107 bytes)."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Caller:
    """A connection: what has come of the question, what is still to go of the reply, and how long it may take."""

    ends_s: float
    heard: bytearray = field(default_factory=bytearray)
    asked: Future[tuple[Reply, Callable[[], None]]] | None = None
    """What it waits for, of the store; `op` is what that shall do."""
    op: str = ""
    reply: memoryview | None = None


class ControlServer:
    """Listens in the agent's state folder, which it has for itself."""

    def __init__(
        self,
        folder: Path,
        *,
        store: Store,
        desk: JobAdmin,
        order: Callable[[ModelOrder], OrderStatus | OrderResult],
        now_s: Callable[[], float] = awake_s,
    ) -> None:
        self._folder = folder
        self._store = store
        self._desk = desk
        self._order = order
        self._now_s = now_s
        self._callers: dict[socket.socket, _Caller] = {}
        self._selector = selectors.DefaultSelector()
        self._waking, self._wakened = socket.socketpair()
        self._waking.setblocking(False)
        self._listener: socket.socket | None = None
        self._deaf_until_s = 0.0
        self.beat = Heartbeat("control", now_s=now_s)
        self._thread = threading.Thread(target=self._run, name="control")
        self._state: Callable[[], Standing]

    def start(self, state: Callable[[], Standing]) -> None:
        """Begin to listen, unless the folder's file system has no sockets: jobs go on without."""
        self._state = state
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with beside(self._folder) as address:
                self._settle_at(listener, address)
        except OSError as error:
            listener.close()
            log.error("control.deaf", reason=error.strerror, next="edge-agent jobs works once the agent is stopped")
            return
        self._listener = listener
        self._selector.register(self._wakened, selectors.EVENT_READ)
        self._thread.start()

    @staticmethod
    def _settle_at(listener: socket.socket, address: str) -> None:
        """Take the place of the socket of a dead agent, for the folder is ours alone. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)  # noqa: PTH108 - of the folder that is open
        listener.bind(address)
        os.chmod(address, 0o600)  # noqa: PTH101 - see above; nobody can connect before it listens
        listener.listen(WAITING_MAX)

    def stop(self) -> None:
        """Hang up on everybody, remove the socket and end."""
        self._waking.close()
        if self._listener is None:
            self._wakened.close()
            self._selector.close()
            return
        self._thread.join()
        with contextlib.suppress(OSError), beside(self._folder) as address:  # nobody listens there any more
            os.unlink(address)  # noqa: PTH108 - see start

    # The thread

    def _run(self) -> None:
        assert self._listener is not None  # noqa: S101 - start made it
        with self._wakened, self._listener, self._selector:
            while True:
                self._heed(self._listener)
                wait_s = self._wait_s()
                self.beat(wait_s)
                for key, _ in self._selector.select(wait_s):
                    self.beat()
                    if key.fileobj is self._wakened and not self._wakened.recv(STEP_BYTES):
                        for caller in list(self._callers):
                            self._hang_up(caller)
                        self.beat.over()
                        return
                    if key.fileobj is self._listener:
                        self._welcome(self._listener)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._callers:
                        self._attend(key.fileobj)
                self._pass_on()
                self._hang_up_late()

    def _wait_s(self) -> float:
        now_s = self._now_s()
        ends = [caller.ends_s for caller in self._callers.values()]
        if self._deaf_until_s > now_s:
            ends.append(self._deaf_until_s)
        return max(0.0, min(ends, default=now_s + IDLE_S) - now_s)

    def _heed(self, listener: socket.socket) -> None:
        """Listen to who wants to come in, or not, as there is a place for them."""
        place = len(self._callers) < CONNECTIONS_MAX and self._now_s() >= self._deaf_until_s
        if place and listener not in self._selector.get_map():
            self._selector.register(listener, selectors.EVENT_READ)
        elif not place and listener in self._selector.get_map():
            self._selector.unregister(listener)

    def _welcome(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it was gone before we looked
            return
        except OSError:  # there is no descriptor for it now
            self._deaf_until_s = self._now_s() + PAUSE_S
            return
        uid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[1]
        if not allowed(uid, own_uid=os.geteuid()):
            log.warning("control.refused", uid=uid)
            sock.close()
            return
        sock.setblocking(False)
        self._callers[sock] = _Caller(self._now_s() + PATIENCE_S)
        self._selector.register(sock, selectors.EVENT_READ)
        if len(self._callers) == CONNECTIONS_MAX:
            for each in self._callers.values():
                each.ends_s = min(each.ends_s, self._now_s() + HURRY_S)

    def _attend(self, sock: socket.socket) -> None:
        caller = self._callers[sock]
        try:
            if caller.reply is None:
                self._hear(sock, caller)
            else:
                caller.reply = caller.reply[sock.send(caller.reply[:STEP_BYTES]) :]
                if not caller.reply:
                    self._hang_up(sock)
        except BlockingIOError:
            return
        except OSError:  # it hung up
            self._hang_up(sock)

    def _hear(self, sock: socket.socket, caller: _Caller) -> None:
        piece = sock.recv(ASK_BYTES_MAX)
        caller.heard += piece
        line, end, _ = bytes(caller.heard).partition(b"\n")
        if not end and len(caller.heard) <= ASK_BYTES_MAX:
            if not piece:
                self._hang_up(sock)
            return
        self._selector.unregister(sock)
        try:
            reply = self._answer(caller, decode_ask(line))
        except EdgeAgentError as error:
            reply = Reply(error=Failure.of(error))
        if reply is not None:
            self._reply(sock, caller, reply)

    def _answer(self, caller: _Caller, ask: Ask) -> Reply | None:
        """Return the answer; None when the store gives it, for which nobody else waits. Raises EdgeAgentError."""
        if isinstance(ask, AskState):
            return Reply(state=self._state())
        if isinstance(ask, ModelOrder):
            return Reply(order=self._order(ask))
        caller.op, caller.ends_s = ask.op, self._now_s() + STORE_S
        caller.asked = self._store.asked(lambda queue: self._desk.answer(queue, ask))
        caller.asked.add_done_callback(lambda _asked: self._wake())
        return None

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # it was woken already, or has stopped
            self._waking.send(b".")

    def _pass_on(self) -> None:
        """Give what the store has said to who waits for it, and to who waited too long that it has not."""
        now_s = self._now_s()
        for sock, caller in [*self._callers.items()]:
            if caller.asked is None or not (caller.asked.done() or caller.ends_s <= now_s):
                continue
            asked, caller.asked = caller.asked, None
            try:
                reply, afterwards = asked.result(0)
            except EdgeAgentError as error:
                reply = Reply(error=Failure.of(error))
            except TimeoutError:
                reply = Reply(error=Failure.of(self._late()))
            else:
                log.info("control.answered", op=caller.op)
                afterwards()
            self._reply(sock, caller, reply)

    def _late(self) -> EdgeAgentError:
        trouble = self._store.trouble
        why = f"{trouble.trouble}; {trouble.mend}" if trouble else "the disk is slow"
        return EdgeAgentError(Code.STORAGE_FULL, f"{why}; what was asked may still be done then")

    def _reply(self, sock: socket.socket, caller: _Caller, reply: Reply) -> None:
        caller.reply = memoryview(reply.encode() + b"\n")
        full = len(self._callers) == CONNECTIONS_MAX
        caller.ends_s = self._now_s() + (HURRY_S if full else PATIENCE_S)
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _hang_up_late(self) -> None:
        now_s = self._now_s()
        for sock in [sock for sock, caller in self._callers.items() if caller.ends_s <= now_s]:
            self._hang_up(sock)

    def _hang_up(self, sock: socket.socket) -> None:
        del self._callers[sock]
        with contextlib.suppress(KeyError):  # one that waits for the store is not listened to
            self._selector.unregister(sock)
        sock.close()


def allowed(uid: int, *, own_uid: int) -> bool:
    """Return whether a user may ask: root and the agent's own."""
    return uid in (0, own_uid)
