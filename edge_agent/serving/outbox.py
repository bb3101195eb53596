"""What the agent has to say: results until the broker answers, states in order, text when it is due.

One thread publishes everything of QoS 1, so that an answer can never come before the question was noted. Results live
in the queue's database and are fetched from there; nothing here needs to survive.
"""

import queue as stdlib_queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from edge_agent.base.awake import awake_s, wait_awake
from edge_agent.base.errors import EdgeAgentError
from edge_agent.base.heartbeat import IDLE_S, Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.engine.hosting.engines import Engines
from edge_agent.jobs.job import TERMINAL, Job, JobState
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Queue
from edge_agent.jobs.results import Owed
from edge_agent.jobs.store import Store
from edge_agent.mqtt.link import PACKET_TOO_LARGE, Link
from edge_agent.mqtt.redial import backoff_s
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import Publication
from edge_agent.serving.chunks import ChunkStream
from edge_agent.serving.rota import Rota

IN_FLIGHT_MAX = 20
"""Messages handed to paho and not answered: after a reconnect it sends them again. It sends fewer at once where the
broker takes fewer, and hangs up on one that answers none of them (`Link.attend`)."""
STATES_IN_FLIGHT_MAX = 15
"""So many of them may be states: however many there are to tell, results go out beside them."""
WAITING_MAX = 10_000
"""States that wait for the connection; beyond it the oldest of who has most are dropped: a requester can ask for them.
"""
FIRST_RETRY_S = 30.0
LAST_RETRY_S = 3600.0
REFUSED = 0x80
NO_SUBSCRIBERS = 0x10
POSITIONS_TOLD = 20

log = get_logger()


class Outbox:
    """Publishes for everybody. Every method but `start`, `settle` and `stop` returns at once, on any thread."""

    def __init__(
        self,
        *,
        link: Link,
        store: Store,
        speech: Speech,
        pace: Pace,
        keep_text: Literal["until_delivered", "until_pruned"],
        engines: Engines,
        now_s: Callable[[], float] = awake_s,
        chance: Callable[[], float],
    ) -> None:
        self._link = link
        self._store = store
        self._speech = speech
        self._pace = pace
        self._keep_text = keep_text
        self._engines = engines
        self._now_s = now_s
        self._chance = chance
        self._inbox: stdlib_queue.SimpleQueue[Callable[[], None] | None] = stdlib_queue.SimpleQueue()
        self._waiting = Rota(speech.lane)
        self._in_flight: dict[int, Owed | None] = {}
        self._asking = False
        self._overtaken = False
        self._next_owed_s = 0.0
        self._streams: dict[ChunkStream, float] = {}
        self._streams_lock = threading.Lock()
        self._settling: list[threading.Event] = []
        self.dropped = 0
        self.beat = Heartbeat("outbox", now_s=now_s)
        self._thread = threading.Thread(target=self._run, name="outbox")

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was not published is published after the next start."""
        self._inbox.put(None)
        self._thread.join()

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything said so far was answered by the broker; return whether it was."""
        done = threading.Event()
        self._inbox.put(partial(self._settling.append, done))
        return wait_awake(done.wait, timeout_s)

    @property
    def waiting(self) -> int:
        """Messages that wait for the connection, or for room among those in flight; a reading for reports."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Messages the broker has not answered yet; likewise."""
        return len(self._in_flight)

    # What others say

    def say(self, publication: Publication) -> None:
        """Publish a message; with QoS 1 until the broker answers or we stop."""
        self._inbox.put(partial(self._line_up, publication))

    def wake(self) -> None:
        """Notice that the connection is back or that results are owed."""
        self._inbox.put(self._ask_anew)

    def answered(self, mid: int, reason: int) -> None:
        """Take in the broker's answer to a message."""
        self._inbox.put(partial(self._take_answer, mid, reason))

    def open(self, job: Job) -> ChunkStream:
        """Return the stream for one attempt at a job."""
        return ChunkStream(job, speech=self._speech, send=self._link.publish, now_s=self._now_s)

    def write(self, stream: ChunkStream, text: str, tokens: int) -> None:
        """Send new text now or at its time."""
        due_s = stream.write(text, tokens)
        if due_s is not None:
            with self._streams_lock:
                soonest = due_s < min(self._streams.values(), default=float("inf"))
                self._streams.setdefault(stream, due_s)
            if soonest:
                self._inbox.put(_nothing)

    def close(self, stream: ChunkStream) -> int:
        """Send the rest of a stream; return the number of its last chunk."""
        with self._streams_lock:
            self._streams.pop(stream, None)
        return stream.end()

    def announce(self, queue: Queue, changes: Sequence[Job]) -> None:
        """Tell requesters and monitors of states that have been committed. Runs on the store's thread."""
        for job in changes:
            if not job.watched:
                self.say(self._status(queue, job))
            self.say(self._speech.event(job))
        if any(job.state in TERMINAL for job in changes):
            self.wake()

    def answer(self, queue: Queue, job: Job) -> None:
        """Tell a requester of a job's state again, and of its result if there is one. Runs on the store's thread."""
        self.say(self._status(queue, job))
        if job.state in TERMINAL:
            self.wake()

    def hand_back(self, jobs: Sequence[Job], error: EdgeAgentError) -> None:
        """Tell requesters that these jobs of pools shall be done by other agents."""
        for job in jobs:
            log.info("job.handed_back", job_id=job.job_id, client=job.client, row=job.row, code=error.code)
            self.say(self._speech.handed_back(job, error))

    def progress(self, job: Job, *, tokens: int) -> None:
        """Tell a requester that a job is still running."""
        if not job.watched:
            self.say(self._speech.status(job, tokens=tokens))

    def _status(self, queue: Queue, job: Job) -> Publication:
        line = queue.overview.line(job, POSITIONS_TOLD) if job.state is JobState.QUEUED else None
        missing = queue.images.missing(job) if job.state is JobState.WAITING else None
        if line is None:
            return self._speech.status(job, missing=missing)
        eta_s = self._pace.eta_s(job.model, line)
        if eta_s is not None:
            eta_s = round(eta_s + self._engines.load_s(job.model), 1)
        return self._speech.status(job, position=line.position, eta_s=eta_s)

    # The thread

    def _run(self) -> None:
        while True:
            patience_s = self._patience_s()
            self.beat(patience_s)
            try:
                note = self._inbox.get(timeout=patience_s)
            except stdlib_queue.Empty:
                note = _nothing
            self.beat()
            if note is None:
                break
            note()
            self._flush_due()
            self._pump()
            self._tell_settled()
        self.beat.over()

    def _patience_s(self) -> float:
        with self._streams_lock:
            due_s = min(self._streams.values(), default=self._now_s() + IDLE_S)
        until_owed_s = self._next_owed_s - self._store.now_s() if self._may_ask() else IDLE_S
        return max(0.0, min(due_s - self._now_s(), until_owed_s, IDLE_S))

    def _room(self) -> int:
        return IN_FLIGHT_MAX - len(self._in_flight)

    def _may_ask(self) -> bool:
        """Return whether results could be published, were any due."""
        return self._link.connected and not self._asking and self._room() > 0

    def _line_up(self, publication: Publication) -> None:
        self.dropped += self._waiting.add(publication, most=WAITING_MAX)

    def _ask_anew(self) -> None:
        self._next_owed_s = 0.0

    def _take_answer(self, mid: int, reason: int) -> None:
        if mid in self._in_flight:
            self._conclude(self._in_flight.pop(mid), reason)
        if self._overtaken:
            self._overtaken, self._next_owed_s = False, 0.0

    def _flush_due(self) -> None:
        now_s = self._now_s()
        with self._streams_lock:
            due = [stream for stream, due_s in self._streams.items() if due_s <= now_s]
            for stream in due:
                del self._streams[stream]
        for stream in due:
            stream.flush()

    def _pump(self) -> None:
        """Hand paho what there is room for: states first, they are small; then results."""
        while self._link.connected and self._waiting and self._room_for_states():
            publication = self._waiting.next()
            mid = self._link.publish(publication)
            if publication.qos and mid is not None:
                self._in_flight[mid] = None
        if self._may_ask() and self._next_owed_s <= self._store.now_s():
            self._asking = True
            self._next_owed_s = float("inf")  # until the answer, or until something happens meanwhile
            self._ask(self._room(), self._rows_in_flight())

    def _ask(self, room: int, busy: frozenset[int]) -> None:
        """Ask for the results there is room for, and when to ask again: at once when there were more."""

        def due(queue: Queue) -> tuple[list[Owed], float | None]:
            results = queue.results.owed(room, busy=busy)
            return results, 0.0 if len(results) == room else queue.results.next_owed_s()

        self._store.do(due, lambda found: self._inbox.put(partial(self._publish_results, *found)))

    def _room_for_states(self) -> bool:
        states = sum(owed is None for owed in self._in_flight.values())
        return self._room() > 0 and states < STATES_IN_FLIGHT_MAX

    def _rows_in_flight(self) -> frozenset[int]:
        return frozenset(owed.job.row for owed in self._in_flight.values() if owed)

    def _publish_results(self, results: list[Owed], next_s: float | None) -> None:
        self._asking = False
        room = self._room()  # states may have taken some of it meanwhile; what finds none is asked for again
        if len(results) > room:
            self._next_owed_s = 0.0
        elif next_s is not None:
            self._next_owed_s = min(self._next_owed_s, next_s)
        for owed in results[:room]:
            if self._waiting.hurry(self._speech.status_topic(owed.job)):
                self._overtaken = True  # no state may come after the result: it is asked for again when they are out
                continue
            publication = self._speech.result(owed.job, packet_bytes_max=self._link.packet_bytes_max)
            mid = self._link.publish(publication)
            if mid is None:
                self._defer(owed, PACKET_TOO_LARGE)
            elif publication.qos == 0:
                self._conclude(owed, 0)  # nobody will answer
            else:
                self._in_flight[mid] = owed
        if self._overtaken:
            self._next_owed_s = float("inf")  # until an answer gives room

    def _conclude(self, owed: Owed | None, reason: int) -> None:
        """Deal with the broker's answer; None stands for a message that needs no more than one."""
        if owed is None:
            return
        self._next_owed_s = 0.0
        if reason == PACKET_TOO_LARGE:
            return  # the broker came back and takes less than before: it is still owed, and cut anew
        if reason >= REFUSED:
            self._defer(owed, reason)
            return
        erase = self._keep_text == "until_delivered" and reason != NO_SUBSCRIBERS and not owed.job.watched

        def delivered(queue: Queue) -> None:
            queue.results.delivered(owed)
            if erase:
                queue.results.erase(owed.job)

        self._store.do(delivered)

    def _defer(self, owed: Owed, reason: int) -> None:
        """Try a result again later that the broker does not take now."""
        self._next_owed_s = 0.0  # when that is stands in the row: ask
        delay_s = backoff_s(owed.tries, first_s=FIRST_RETRY_S, most_s=LAST_RETRY_S, chance=self._chance())
        log.warning(
            "result.refused",
            job_id=owed.job.job_id,
            client=owed.job.client,
            reason=reason,
            retry_s=round(delay_s),
        )
        self._store.do(lambda queue: queue.results.deferred(owed, delay_s))

    def _tell_settled(self) -> None:
        if self._settling and not (self._waiting or self._in_flight or self._asking or self._inbox.qsize()):
            for done in self._settling:
                done.set()
            self._settling.clear()


def _nothing() -> None:
    """Stands for a note that asks for no more than a look at what is due."""
