"""Jobs a program has sent, each followed until its end is known: what is due is published, what is heard handed on."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.client import upload
from edge_agent.client.handle import Handle, JobRejectedError
from edge_agent.client.placement import Due, RefusalMeaning, Voice
from edge_agent.client.send_window import SendWindow
from edge_agent.jobs.job import TERMINAL, Failure
from edge_agent.mqtt.link import PACKET_TOO_LARGE, QUOTA_EXCEEDED, Link
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.payloads import Chunk, JobRef, Presence, Result, Status
from edge_agent.protocol.topics import Command, Topics

CLOSED_MOST = 10_000
"""Ended jobs of pools that are remembered, to tell agents that still have them."""
REFUSED = 0x80
NO_SUBSCRIBERS = 0x10
CANCEL_EXPIRY_S = 300
STATUS_EXPIRY_S = 60

Key = tuple[str | None, str]
"""What tells open jobs apart: the agent and the id, of a pool the id alone."""


class JobBook:
    """The open jobs of one client; belongs to its thread."""

    def __init__(self, client: str, *, root: str, link: Link, now_s: Callable[[], float]) -> None:
        self._client = client
        self._root = root
        self._link = link
        self._now_s = now_s
        self._open: dict[Key, Handle] = {}
        self._send_windows: defaultdict[str, SendWindow] = defaultdict(SendWindow)
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._born: dict[str, Presence] = {}
        self._asked: dict[int, Handle] = {}
        """Jobs, by the ids of the messages about them that the broker has not answered."""

    # What the program wants

    def add(self, handle: Handle) -> None:
        """Follow a job; of two handles of one id only one could get the result, so the later is refused."""
        if _key(handle) in self._open:
            sentence = "job_id: this client has the job open already; wait for its first handle, or take a new id"
            handle.finish(None, JobRejectedError(Code.DUPLICATE_ID, sentence))
        else:
            self._open[_key(handle)] = handle

    def cancel(self, handle: Handle) -> None:
        """Ask for a job to end; for one that has ended nothing is left to do."""
        if self._open.get(_key(handle)) is handle:
            handle.placement.canceled_s = self._now_s()
            self._send_cancel(handle)

    def close(self, error: EdgeAgentError) -> None:
        """Follow no job any longer."""
        for handle in self._open.values():
            handle.finish(None, error)
        self._open.clear()

    # What is due

    def resume(self) -> None:
        """Ask after what was sent over the connection before this one."""
        for handle in self._open.values():
            handle.placement.resume(self._link.connections)
            if handle.placement.canceled_s is not None:
                self._send_cancel(handle)

    def chase(self) -> None:
        """Send what was not answered, ask after what fell silent."""
        now_s, shut = self._now_s(), set[str]()
        for handle in sorted(self._open.values(), key=lambda handle: -handle.request.priority):
            failure = handle.placement.end(now_s)
            if failure is not None:
                self._refuse(handle, failure)
            elif self._link.connected:
                self._do_due(handle, now_s, shut)

    def _do_due(self, handle: Handle, now_s: float, shut: set[str]) -> None:
        """Do what is due for a job, if its pool takes any now; one that takes no more is added to `shut`."""
        due = handle.placement.due(now_s)
        if due is None:
            return
        if due is Due.OFFER:
            pool = handle.pool or ""
            if pool in shut or not self._send_windows[pool].open(now_s):
                shut.add(pool)
                return
            self._send_windows[pool].sent(handle.job_id, now_s)
        ask = due is Due.ASK
        publication = Publication(
            self._topic(handle, Command.STATUS if ask else Command.JOB, pool=due is Due.OFFER),
            _ref(handle.job_id) if ask else handle.payload,
            qos=1,
            expiry_s=STATUS_EXPIRY_S if ask else handle.placement.left_s(now_s),
        )
        handle.placement.sent(due, now_s, connection=self._link.connections)
        mid = self._link.publish(publication)
        if mid is None:
            self._refuse(handle, self._broker_failure(handle, PACKET_TOO_LARGE))
        else:
            self._asked[mid] = handle
        if ask and handle.placement.canceled_s is not None:
            self._send_cancel(handle)  # it may have expired before the agent was back

    def _topic(self, handle: Handle, command: Command, *, pool: bool) -> str:
        topics = Topics(self._root, handle.agent or "")
        if pool:
            return topics.pool_command(handle.pool or "", command, self._client)
        return topics.command(command, self._client)

    def _send_cancel(self, handle: Handle) -> None:
        """Tell the agent; of a pool all of them, for the job may be on its way to any."""
        if self._link.connected:
            topic = self._topic(handle, Command.CANCEL, pool=handle.pool is not None)
            self._link.publish(Publication(topic, _ref(handle.job_id), qos=1, expiry_s=CANCEL_EXPIRY_S))

    def _dismiss(self, agent: str, name: str) -> None:
        """Tell one agent of a pool that another has the job, or had it."""
        topic = Topics(self._root, agent).command(Command.CANCEL, self._client)
        self._link.publish(Publication(topic, _ref(name), qos=1, expiry_s=CANCEL_EXPIRY_S))

    def _upload(self, handle: Handle, missing: Sequence[str]) -> None:
        """Send the images an agent asks for, unless some are on their way: it asks again for what gets lost."""
        job = handle.placement
        if job.uploading:
            return
        topic, expiry_s = self._topic(handle, Command.IMAGE, pool=False), job.left_s(self._now_s())
        bound = self._link.packet_bytes_max
        for sha256 in set(missing) & handle.uploads.keys():
            for user, piece in upload.parts(handle.uploads[sha256], packet_bytes_max=bound):
                mid = self._link.publish(Publication(topic, piece, qos=1, expiry_s=expiry_s, user=user))
                if mid is not None:
                    job.uploading.add(mid)
                    self._asked[mid] = handle

    # What the broker says

    def answered(self, mid: int, reason: int) -> None:
        """Take in the broker's answer to a message."""
        handle = self._asked.pop(mid, None)
        if handle is None or handle.done:
            return
        job = handle.placement
        uploaded = mid in job.uploading
        job.uploading.discard(mid)
        if uploaded and reason < REFUSED:
            return
        handle.unheard, job.throttled = reason == NO_SUBSCRIBERS, reason == QUOTA_EXCEEDED
        if handle.unheard:
            job.unheard(self._now_s())
        if job.offered and (handle.unheard or job.throttled):
            self._send_windows[job.pool or ""].full(handle.job_id, self._now_s())
        if reason >= REFUSED and not job.throttled:
            self._refuse(handle, self._broker_failure(handle, reason))

    def _broker_failure(self, handle: Handle, reason: int) -> Failure:
        if reason == PACKET_TOO_LARGE:
            sentence = "the broker takes no message so large; send less, or let it (max_packet_size in mosquitto)"
            return Failure.because(Code.PAYLOAD_TOO_LARGE, sentence)
        to = handle.pool or handle.agent
        sentence = f"the broker refuses jobs of {self._client} for {to} (reason {reason:#x}); mend its ACL"
        return Failure.because(Code.BAD_REQUEST, sentence)

    # What agents say

    def find(self, agent: str, name: str) -> Handle | None:
        """Return the open job that an agent speaks of."""
        return self._open.get((agent, name)) or self._open.get((None, name))

    def hear_presence(self, agent: str, presence: Presence) -> None:
        """Offer the jobs of an agent that is gone again; its last word counts only when it is of its last birth."""
        if presence.state == "online":
            self._born[agent] = presence
            return
        born = self._born.get(agent)
        if born is None or (born.boot_id, born.conn_seq) == (presence.boot_id, presence.conn_seq):
            for handle in self._open.values():
                if handle.pool is not None and handle.agent == agent:
                    handle.placement.lose(self._now_s())

    def hear_late(self, agent: str, status: Status) -> None:
        """Spare an agent the work on a job of a pool that another has done."""
        if status.job_id in self._closed and status.state != "rejected" and status.state not in TERMINAL:
            self._dismiss(agent, status.job_id)

    def hear_status(self, handle: Handle, status: Status) -> None:
        """Take in a job's state, or that it was refused."""
        if status.state == "rejected":
            self._hear_refusal(handle, status)
            return
        if handle.pool is not None and not self._settle(handle, status):
            return
        if status.missing:
            self._upload(handle, status.missing)
        if handle.placement.state(status.state_seq, self._now_s()):
            news = status != handle.status
            handle.status = status
            if news:
                handle.put(status)

    def _settle(self, handle: Handle, status: Status) -> bool:
        """Return whether this agent of the pool is the one to follow: the first that accepts; later ones drop it."""
        send_window = self._send_windows[handle.pool or ""]
        voice = handle.placement.voice(status.agent, ended=status.state in TERMINAL)
        if voice is Voice.FIRST:
            send_window.taken(handle.job_id)
            self._link.subscribe(Topics(self._root, status.agent).event("presence"))
        if voice is Voice.LATE:
            self._dismiss(status.agent, handle.job_id)
        if voice in {Voice.LATE, Voice.SPENT}:
            return False
        if status.state != "queued" and status.state_seq > handle.placement.state_seq:
            send_window.stir(self._now_s())
        return True

    def _hear_refusal(self, handle: Handle, status: Status) -> None:
        failure = status.error or Failure.because(Code.INTERNAL, "")
        send_window, now_s = self._send_windows[handle.pool or ""], self._now_s()
        match handle.placement.refused(status.agent, failure, now_s):
            case RefusalMeaning.OVER:
                self._refuse(handle, failure)
            case RefusalMeaning.NO_ROOM:
                send_window.full(handle.job_id, now_s)
            case RefusalMeaning.ELSEWHERE:
                send_window.taken(handle.job_id)
            case RefusalMeaning.NOTHING:
                pass

    def hear_chunk(self, handle: Handle, chunk: Chunk) -> None:
        """Take in text as it comes."""
        if handle.placement.chunk(chunk.agent, chunk.attempt, chunk.seq, self._now_s()):
            handle.put(chunk)

    def hear_result(self, handle: Handle, result: Result) -> None:
        """Take in a result, if it counts."""
        if handle.placement.result(result.agent, succeeded=result.state == "succeeded"):
            handle.put(result)
            self._close(handle)
            handle.finish(result, None)

    def _refuse(self, handle: Handle, failure: Failure) -> None:
        self._close(handle)
        handle.finish(None, JobRejectedError(failure.code, failure.message, retry_after_s=failure.retry_after_s))

    def _close(self, handle: Handle) -> None:
        del self._open[_key(handle)]
        if handle.pool is not None:
            self._send_windows[handle.pool].forget(handle.job_id)
            for agent in handle.placement.holders:
                self._dismiss(agent, handle.job_id)
            self._closed[handle.job_id] = None
            if len(self._closed) > CLOSED_MOST:
                self._closed.popitem(last=False)


def _key(handle: Handle) -> Key:
    return (None if handle.pool is not None else handle.agent, handle.job_id)


def _ref(name: str) -> bytes:
    return JobRef(job_id=name).model_dump_json().encode()
