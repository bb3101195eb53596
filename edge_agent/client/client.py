"""EdgeClient: how a program sends jobs and follows them to their end, over reconnects and restarts on either side."""

import asyncio
import os
import queue as stdlib_queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client import upload
from edge_agent.client.handle import Handle
from edge_agent.client.job_book import JobBook
from edge_agent.client.order_book import OrderBook, OrderHandle
from edge_agent.client.placement import Placement
from edge_agent.jobs.ids import job_id
from edge_agent.jobs.request import Request
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link, Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.decode import hear
from edge_agent.protocol.messages import PAYLOAD_BYTES_MAX, Inbound, faults
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.payloads import Chunk, Presence, Result, Status
from edge_agent.protocol.topics import Topics, check_name
from edge_agent.settings.broker import ROOT_PATTERN

TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class _RequestAnswered:
    mid: int
    reason: int


@dataclass(frozen=True, slots=True)
class _JobCancelled:
    handle: Handle


@dataclass(frozen=True, slots=True)
class _Connected:
    """The connection is there."""


_Note = Handle | OrderHandle | _RequestAnswered | _JobCancelled | _Connected | Inbound


class EdgeClient:
    """A requester. One client may have many jobs open with many agents; use it in a `with` block, or `async with`.

    `name` is the requester's name in topics, the client id of `access` when absent; a broker with an ACL wants it to be
    the user name. With `access.session_expiry_s` the broker keeps what comes while the connection is down. For it to do
    so over restarts of the program too, give `session_file`: the part of the client id that nobody can guess is kept
    there, made with mode 0600 when there is none; one client at a time may use it.
    Without it keep `access.session` yourself, or let each EdgeClient have a session of its own.

    Raises EdgeAgentError BAD_REQUEST when `access` or `root` cannot be, or no requester can have the name (a-z 0-9 _ -,
    a letter or digit first, at most 63), OSError when the file cannot be read or made. Entering the block raises
    EdgeAgentError BAD_REQUEST when another client has the session file, or this one was opened before.
    """

    def __init__(
        self,
        access: Access,
        *,
        name: str | None = None,
        root: str = "edge/v1",
        session_file: str | Path | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        access = _checked(access)
        self._client = access.client_id if name is None else name
        check_name("name", self._client)
        if not isinstance(root, str) or not re.fullmatch(ROOT_PATTERN, root):
            raise EdgeAgentError(Code.BAD_REQUEST, "root: one or two levels of A-Z a-z 0-9 _ . -, as in edge/v1")
        self._session_file = None if session_file is None else Path(session_file)
        if self._session_file is not None:
            access = replace(access, session=session.kept(self._session_file))
        self._claim: int | None = None
        self._root = root
        self._now_s = now_s
        self._notes: stdlib_queue.SimpleQueue[_Note | None] = stdlib_queue.SimpleQueue()
        inbox = f"{Topics(root, '+').inbox_root(self._client)}/#"
        self._link = Link(access, subscriptions=(Subscription(inbox),))
        self._link.on_received.connect(self._receive)
        self._link.on_up.connect(lambda _epoch: self._notes.put(_Connected()))
        self._link.on_answered.connect(lambda mid, reason: self._notes.put(_RequestAnswered(mid, reason)))
        self._jobs = JobBook(self._client, root=root, link=self._link, now_s=now_s)
        self._orders = OrderBook(
            self._client,
            topics=lambda agent: Topics(root, agent),
            publish=self._link.publish,
            now_s=now_s,
        )
        self._thread = threading.Thread(target=self._run, name="edge-client", daemon=True)
        self._open_in: int | None = None
        """The process in which it takes jobs and orders: none before and behind the block, nor in a forked child."""
        self._handing = threading.Lock()

    def __enter__(self) -> Self:
        if self._thread.ident is not None:
            raise EdgeAgentError(Code.BAD_REQUEST, "the client was opened before; make another one for another block")
        if self._session_file is not None:
            self._claim = _claim(self._session_file)
        self._open_in = os.getpid()
        self._link.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notes.put(None)
        self._thread.join()
        self._link.stop()
        if self._claim is not None:
            os.close(self._claim)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)  # threads end, the broker is told

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the broker; return whether it is there. Raises EdgeAgentError SHUTTING_DOWN outside of the block."""
        self._check_open()
        return self._link.wait_connected(timeout_s)

    @property
    def trouble(self) -> str | None:
        """Why there is no connection and what mends it, in a sentence; None while there is one."""
        return None if self._link.excuse is None else str(self._link.excuse)

    def submit(
        self,
        agent: str | None = None,
        *,
        pool: str | None = None,
        images: Sequence[bytes | str | Path] = (),
        **request: Any,
    ) -> Handle:
        """Send a job to an agent or to a pool, to be done by one of its agents.

        The keywords are the fields of a job request, `job_id` is made when it is absent. Returns at once. The job is
        sent again until it is accepted, refused, or its time to live is over; to a pool also when the agent that
        accepted it is gone. `images`, bytes or paths, are added to the last message: inside it while that fits, else
        uploaded when the agent asks for them. Raises EdgeAgentError BAD_REQUEST or PAYLOAD_TOO_LARGE when no agent
        could take it, SHUTTING_DOWN outside of the client's block, OSError when an image cannot be read.
        """
        if (agent is None) == (pool is None):
            raise EdgeAgentError(Code.BAD_REQUEST, "agent: give either an agent or a pool, and one of them")
        check_name("agent" if pool is None else "pool", agent or pool or "")
        try:
            contents = upload.read(images)
            told = from_json(to_json({"job_id": job_id()} | request))
            fields, uploads = upload.attach(told, contents, packet_bytes_max=self._link.packet_bytes_max)
            parsed = Request.model_validate_json(to_json(fields))
        except (ValidationError, PydanticSerializationError) as error:
            raise EdgeAgentError(Code.BAD_REQUEST, _fault(error, request)) from None
        payload = parsed.to_json().encode()
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise EdgeAgentError(Code.PAYLOAD_TOO_LARGE, f"the job is over {PAYLOAD_BYTES_MAX} bytes; send less text")
        handle = Handle(
            placement=Placement(agent, pool, ends_s=self._now_s() + parsed.ttl_s),
            request=parsed,
            payload=payload,
            cancel=lambda handle: self._notes.put(_JobCancelled(handle)),
            uploads=uploads,
        )
        self._hand_over(handle)
        return handle

    def admin(
        self, agent: str, op: str, model: str, *, op_id: str | None = None, pinned: bool | None = None
    ) -> OrderHandle:
        """Order an agent to `load`, `unload`, `pull`, `pin` or `unpin` a model; returns at once.

        Raises EdgeAgentError BAD_REQUEST when no agent could take the order, SHUTTING_DOWN outside of the block.
        """
        check_name("agent", agent)
        fields = {"op_id": op_id or job_id(), "op": op, "model": model, "pinned": pinned}
        try:
            order = ModelOrder.model_validate_json(to_json(fields))
        except (ValidationError, PydanticSerializationError) as error:
            raise EdgeAgentError(Code.BAD_REQUEST, _fault(error, fields)) from None
        handle = OrderHandle(agent, order)
        self._hand_over(handle)
        return handle

    def _hand_over(self, handle: Handle | OrderHandle) -> None:
        """Give something to the client's thread. Raises EdgeAgentError SHUTTING_DOWN when that would never end it."""
        with self._handing:
            self._check_open()
            self._notes.put(handle)

    def _check_open(self) -> None:
        if self._open_in != os.getpid():
            sentence = "the client is not open in this process: use it inside its `with` block, one in each process"
            raise EdgeAgentError(Code.SHUTTING_DOWN, sentence)

    # The client's thread

    def _receive(self, inbound: Inbound, receipt: Receipt) -> None:
        self._notes.put(inbound)
        self._link.ack(receipt)

    def _run(self) -> None:
        try:
            while self._turn():
                self._chase()
                self._link.attend()
        finally:
            self._give_up()

    def _turn(self) -> bool:
        """Take what comes, if something does; return whether to go on."""
        try:
            note = self._notes.get(timeout=TICK_S)
        except stdlib_queue.Empty:
            return True
        if note is not None:
            self._take(note)
        return note is not None

    def _take(self, note: _Note) -> None:
        match note:
            case Handle():
                self._jobs.add(note)
            case OrderHandle():
                self._orders.add(note)
            case _JobCancelled(handle):
                self._jobs.cancel(handle)
            case _Connected():
                self._jobs.resume()
            case _RequestAnswered(mid, reason):
                self._jobs.answered(mid, reason)
                self._orders.answered(mid, reason)
            case Inbound():
                self._hear(note)

    def _chase(self) -> None:
        self._jobs.chase()
        self._orders.chase(connected=self._link.connected)

    def _hear(self, inbound: Inbound) -> None:
        levels = inbound.topic.rsplit("/", 3)
        if len(levels) != 4:
            return
        _, agent, name, leaf = levels
        try:
            if leaf == "presence":
                self._jobs.hear_presence(agent, hear(Presence, inbound.payload, agent))
            elif self._orders.owns(agent, name):
                kind: type[OrderResult | OrderStatus] = OrderResult if leaf == "result" else OrderStatus
                self._orders.hear(agent, name, hear(kind, inbound.payload, agent))
            else:
                self._hear_of_job(agent, name, leaf, inbound.payload)
        except ValueError:
            return  # not from an agent we understand; the job is asked after

    def _hear_of_job(self, agent: str, name: str, leaf: str, payload: bytes) -> None:
        """Take in what an agent says of a job. Raises ValueError for what is none of its payloads."""
        handle = self._jobs.find(agent, name)
        match leaf:
            case "status" if handle is not None:
                self._jobs.hear_status(handle, hear(Status, payload, agent))
            case "status":
                self._jobs.hear_late(agent, hear(Status, payload, agent))
            case "chunk" if handle is not None:
                self._jobs.hear_chunk(handle, hear(Chunk, payload, agent))
            case "result" if handle is not None:
                self._jobs.hear_result(handle, hear(Result, payload, agent))

    def _give_up(self) -> None:
        """Tell everybody who still waits; the agents go on."""
        with self._handing:
            self._open_in = None
        while not self._notes.empty():
            note = self._notes.get()
            if isinstance(note, Handle | OrderHandle):
                self._take(note)
        sentence = "the client was closed before the end was known; ask again by the same id"
        self._jobs.close(EdgeAgentError(Code.SHUTTING_DOWN, sentence))
        self._orders.close(EdgeAgentError(Code.SHUTTING_DOWN, sentence))


def _checked(access: object) -> Access:
    """Return how the broker is reached. Raises EdgeAgentError BAD_REQUEST when nothing can be reached like that."""
    if not isinstance(access, Access):
        raise EdgeAgentError(Code.BAD_REQUEST, "access: must be an Access")
    try:
        return access.checked()
    except ValidationError as error:
        raise EdgeAgentError(Code.BAD_REQUEST, faults(error)) from None


def _claim(session_file: Path) -> int:
    try:
        return session.claim(session_file)
    except BlockingIOError:
        sentence = "session_file: another client uses it; give each a file of its own, or none"
        raise EdgeAgentError(Code.BAD_REQUEST, sentence) from None


def _fault(error: ValidationError | PydanticSerializationError, fields: Mapping[str, Any]) -> str:
    """Return what is wrong with fields, in a sentence that names them and repeats no value."""
    if isinstance(error, ValidationError):
        return faults(error)
    unspeakable = (name for name, value in fields.items() if not _speakable(value))
    return f"{next(unspeakable, 'a field')}: cannot be written as JSON"


def _speakable(value: Any) -> bool:
    try:
        to_json(value)
    except PydanticSerializationError:
        return False
    return True
