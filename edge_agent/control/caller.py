"""The asking end: a running agent through its socket, or the queue itself while no agent has it."""

import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError, SettingsError
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.messages import Ask, AskState, PruneJobs, Reply, decode_reply
from edge_agent.control.server import beside
from edge_agent.jobs.database import DamagedError, LockedError, SchemaTooNewError, StorageError
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.state_dir import locked

ANSWER_S = 30.0
"""More than the agent takes at most, which may have to wait for its disk."""
STATE_S = 5.0
"""The same for how it is: it waits for nothing then."""
LOCK_S = 30.0
"""How long another program may hold the queue's lock before we give up."""
PAUSE_S = 0.1
REPLY_BYTES_MAX = 64 * 2**20


def _silent(_sentence: str) -> None:
    pass


def ask_agent(folder: Path, ask: Ask) -> Reply | None:
    """Ask the agent that has a state folder; None when none listens there.

    Raises EdgeAgentError when we may not ask or get no answer, with Code.TIMEOUT when that was waited for in vain.
    """
    answer_s = STATE_S if isinstance(ask, AskState) else ANSWER_S
    end_s = time.monotonic() + answer_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(answer_s)
        try:
            _connect(sock, folder, end_s)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except PermissionError:
            raise _not_ours(folder) from None
        except OSError as error:
            said = f"{folder} is no agent's state folder: {error.strerror or error}"
            raise EdgeAgentError(
                Code.INTERNAL, f"{said}; name it with --state-dir, or the agent's settings with --config"
            ) from None
        try:
            sock.sendall(ask.model_dump_json().encode() + b"\n")
            line = _everything(sock, end_s)
        except TimeoutError:
            raise EdgeAgentError(Code.TIMEOUT, _frozen(sock, answer_s)) from None
        except OSError as error:
            raise EdgeAgentError(Code.INTERNAL, f"the agent did not answer ({error}); try again, see its log") from None
    if not line:
        raise EdgeAgentError(
            Code.INTERNAL, "the agent hung up: it takes questions of its own user and root, and few at a time"
        )
    return decode_reply(line)


def ask_queue(
    folder: Path, ask: Ask, *, desk: JobAdmin, age_step_s: float, say: Callable[[str], None] = _silent
) -> Reply:
    """Do what is asked on the queue itself, which no agent may have meanwhile.

    Another program's lock is waited for, and said. Raises EdgeAgentError when there is no queue, somebody has it for
    too long, or it cannot be used.
    """
    file = folder / "queue.db"
    try:
        if not file.is_file():
            raise EdgeAgentError(Code.UNKNOWN_JOB, f"{folder} holds no queue; name the agent's settings with --config")
        with locked(folder):
            return _patiently(lambda: _answer(file, ask, desk=desk, age_step_s=age_step_s), say)
    except PermissionError:
        raise _not_ours(folder) from None
    except SettingsError as error:
        raise EdgeAgentError(Code.INTERNAL, f"{error}; it does not answer on its control socket: see its log") from None
    except StorageError as error:
        sentence = f"{file} cannot be used: {error.trouble} ({error}); {error.mend}"
        raise EdgeAgentError(Code.INTERNAL, sentence) from None
    except (SchemaTooNewError, DamagedError) as error:
        raise EdgeAgentError(Code.INTERNAL, f"{file} cannot be used: {error}") from None


def _answer(file: Path, ask: Ask, *, desk: JobAdmin, age_step_s: float) -> Reply:
    with Queue(file, age_step_s=age_step_s) as queue:
        with queue.transaction():
            reply, _ = desk.answer(queue, ask)
        if isinstance(ask, PruneJobs) and not reply.more:
            queue.leftovers.settle()
    return reply


def _patiently(act: Callable[[], Reply], say: Callable[[str], None]) -> Reply:
    """Act, again and again while another program holds the lock. Raises LockedError when that takes too long."""
    end_s, said = time.monotonic() + LOCK_S, False
    while True:
        try:
            return act()
        except LockedError as error:
            if time.monotonic() > end_s:
                raise
            if not said:
                say(f"waits: {error.trouble}")
            said = True
            time.sleep(PAUSE_S)


def reach(
    folder: Path, *, desk: JobAdmin, age_step_s: float, say: Callable[[str], None] = _silent
) -> Callable[[Ask], Reply]:
    """Return how to ask: whoever answers, the agent or its queue. A refusal raises EdgeAgentError.

    `say` is told what is waited for.
    """

    def asking(ask: Ask) -> Reply:
        reply = ask_agent(folder, ask) or ask_queue(folder, ask, desk=desk, age_step_s=age_step_s, say=say)
        if reply.error is not None:
            raise EdgeAgentError(reply.error.code, reply.error.message, retry_after_s=reply.error.retry_after_s)
        return reply

    return asking


def _connect(sock: socket.socket, folder: Path, end_s: float) -> None:
    """Connect, waiting for a place while others have them all. Raises OSError, EdgeAgentError when none gets free."""
    while True:
        try:
            with beside(folder) as address:
                return sock.connect(address)
        except BlockingIOError:
            if time.monotonic() > end_s:
                raise EdgeAgentError(Code.TIMEOUT, "too many ask the agent at once, or it is frozen") from None
            time.sleep(PAUSE_S)


def _everything(sock: socket.socket, end_s: float) -> bytes:
    heard = bytearray()
    while piece := sock.recv(65_536):
        heard += piece
        if len(heard) > REPLY_BYTES_MAX or time.monotonic() > end_s:
            raise EdgeAgentError(Code.INTERNAL, "the agent's answer has no end; ask for fewer jobs (--limit)")
    return bytes(heard)


def _frozen(sock: socket.socket, answer_s: float) -> str:
    """Return what is to be said of an agent that listens and does not answer."""
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))[0]
    frozen = f"the agent (pid {pid}) did not answer within {answer_s:.0f} s: it is frozen"
    return f"{frozen} (a stopped process, a paused container) or its disk is; see its log"


def _not_ours(folder: Path) -> EdgeAgentError:
    return EdgeAgentError(Code.INTERNAL, f"{folder} is another user's; run this as the agent's user or with sudo")
