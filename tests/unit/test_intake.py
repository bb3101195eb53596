"""What requesters ask: every refusal with its code and sentence, and no acknowledgement before the commit."""

import base64
import hashlib
import json
import os
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
from fakes import ANSWER, ENGINE_DIED, PATIENCE_S, FakeRoster, FullDisk, Time, counts, flush, request
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import Code
from edge_agent.images.spool import Spool
from edge_agent.jobs.job import JobState, Outcome
from edge_agent.jobs.pace import JobWork, Pace, Took
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.retention import UNBOUNDED, Allowance, RetentionBounds
from edge_agent.jobs.store import GROUP_MAX, Store
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import PAYLOAD_BYTES_MAX, Inbound
from edge_agent.protocol.topics import Topics
from edge_agent.serving import intake as intake_module
from edge_agent.serving.intake import Intake
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import ImagesSection, QueueSection, RequestersSection

TOPICS = Topics("edge/v1", "edge-01")
MARK = "S3CRET"


class FakeOutbox:
    """Keeps what it is told to say, in one journal with the acknowledgements of the link."""

    def __init__(self, journal):
        self.journal = journal

    def say(self, publication):
        self.journal.append(("said", json.loads(publication.payload)))

    def answer(self, _queue, job):
        self.journal.append(("answered", job.job_id, job.state))


class Desk:
    """An intake with a real store behind it; `journal` holds in order what left it."""

    def __init__(
        self,
        folder,
        *,
        roster=None,
        free_bytes=10**9,
        folders=(),
        share_bytes=10_000,
        quota_bytes=10_000,
        allowance=UNBOUNDED,
        **settings,
    ):
        self.journal = []
        self.machine = Time()
        self.queue = self.machine.queue(folder, allowance=allowance)
        self.ack = lambda mid: self.journal.append(("acked", mid))
        self.spool = Spool(
            folder / "images",
            quota_bytes=quota_bytes,
            requester_quota_bytes=share_bytes,
            image_bytes=8_000,
            part_bytes=1,
        )
        self.store = Store(
            self.queue,
            keep_finished_s=86_400,
            keep_finished_jobs=1000,
            sync=self.spool.sync,
            retry_s=0.01,
        )
        self.store.on_changed.connect(
            lambda changes: self.journal.extend(("told", job.job_id, job.state) for job in changes)
        )
        self.pace = Pace()
        self.spool.open()
        self.intake = Intake(
            strangers=Strangers(lambda: 0.0),
            topics=TOPICS,
            speech=Speech(TOPICS),
            settings=QueueSection(**{k: v for k, v in settings.items() if k in QueueSection.model_fields}),
            images=ImagesSection(folders=folders),
            spool=self.spool,
            requesters=RequestersSection(**{k: v for k, v in settings.items() if k in RequestersSection.model_fields}),
            store=self.store,
            outbox=FakeOutbox(self.journal),
            engines=roster or FakeRoster("phi"),
            pace=self.pace,
            free_bytes=free_bytes if callable(free_bytes) else lambda: free_bytes,
            pool_full=lambda: self.pool_full,
        )
        self.intake.on_cancel.connect(lambda job: self.journal.append(("cancel", job.job_id, job.attempt)))
        self.pool_full = False
        self.mid = 0

    def __enter__(self):
        if not self.store._thread.is_alive():
            self.store.start()
        flush(self.store)
        return self

    def __exit__(self, *raised):
        self.store.stop()

    def receive(self, command, body, *, client="line-3", topic=None, **properties):
        """Receive one message, not waiting for what becomes of it."""
        self.mid += 1
        payload = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        topic = topic or f"edge/v1/agents/edge-01/cmd/{command}/{client}"
        self.intake.receive(Inbound(topic, payload, **properties), partial(self.ack, self.mid))

    def take(self, command, body, **properties):
        """Receive one message; return what left the intake because of it."""
        flush(self.store)
        before = len(self.journal)
        self.receive(command, body, **properties)
        flush(self.store)
        return self.journal[before:]

    def submit(self, name="job-1", **fields):
        return self.take("job", json.loads(request(name, **fields).to_json()))

    def ask(self, act):
        return self.store.ask(act, timeout_s=PATIENCE_S)

    def find(self, name="job-1", client="line-3"):
        return self.ask(lambda queue: queue.recall(client, name))

    def claim(self):
        return self.ask(lambda queue: queue.claim("phi", idle=True))

    def finish(self):
        return self.ask(lambda queue: queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER))


@pytest.fixture
def desk(tmp_path):
    with Desk(tmp_path) as opened:
        yield opened


def refusal(journal):
    """Return the error of a refusal that was told, then acknowledged, and nothing else."""
    (kind, body), (acked, _mid) = journal
    assert (kind, acked, body["state"], body["state_seq"]) == ("said", "acked", "rejected", 0)
    return body["job_id"], body["error"]


# Jobs


def test_a_job_is_stored_then_acknowledged_then_told(desk):
    assert desk.submit() == [("acked", 1), ("told", "job-1", JobState.QUEUED)]


def test_what_came_with_a_job_stays_with_it(desk):
    """Correlation data, trace and the shorter of both lives."""
    body = json.loads(request(ttl_s=600).to_json())
    desk.take("job", body, correlation=b"\x01", traceparent="00-ab", expiry_s=60.0)
    job = desk.find()
    assert (job.correlation, job.traceparent, job.client) == (b"\x01", "00-ab", "line-3")
    assert job.expires_s - job.accepted_s == 60


def test_a_message_whose_life_is_over_lives_no_longer(desk):
    """A message expiry of 0 is not the absence of one."""
    desk.take("job", json.loads(request(ttl_s=600).to_json()), expiry_s=0.0)
    flush(desk.store)
    assert desk.find().state is JobState.EXPIRED


def test_a_repeat_is_answered_with_the_state_and_stored_once(desk):
    """Redelivery may come with DUP=0; the same parsed body is the same job."""
    desk.submit()
    assert desk.submit() == [("answered", "job-1", JobState.QUEUED), ("acked", 2)]
    desk.finish()
    assert desk.submit() == [("answered", "job-1", JobState.SUCCEEDED), ("acked", 3)]
    assert desk.ask(lambda queue: sum(counts(queue).values())) == 1
    assert [each.job.job_id for each in desk.ask(lambda queue: queue.results.owed(10))] == ["job-1"]


def test_a_repeat_is_answered_also_when_nothing_new_is_taken(tmp_path):
    with Desk(tmp_path, high_water_jobs=1) as desk:
        desk.submit()
        assert desk.submit()[0] == ("answered", "job-1", JobState.QUEUED)


@pytest.mark.parametrize(
    ("fields", "properties", "code", "sentence"),
    [
        ({"max_tokens": 0}, {}, Code.BAD_REQUEST, "max_tokens: must be greater than or equal to 1"),
        ({"max_tokens": MARK}, {}, Code.BAD_REQUEST, "max_tokens: must be a valid integer"),
        ({}, {"retained": True}, Code.RETAINED, "publish commands without the retain flag"),
        (
            {},
            {"response_topic": f"edge/v1/clients/{MARK}/inbox"},
            Code.BAD_RESPONSE_TOPIC,
            "ResponseTopic: must be edge/v1/clients/line-3/inbox, or absent",
        ),
        ({}, {"response_topic": "a/#"}, Code.BAD_RESPONSE_TOPIC, "ResponseTopic: must be"),
        ({}, {"response_topic": ""}, Code.BAD_RESPONSE_TOPIC, "ResponseTopic: must be"),
        ({}, {"correlation": MARK.encode() * 20}, Code.BAD_REQUEST, "CorrelationData: must be at most 64 bytes"),
        ({}, {"traceparent": MARK * 30}, Code.BAD_REQUEST, "traceparent: must be at most 128 bytes"),
        ({}, {"traceparent": "ü" * 65}, Code.BAD_REQUEST, "traceparent: must be at most 128 bytes"),
        ({"model": MARK}, {}, Code.UNKNOWN_MODEL, "model: this agent serves"),
        ({"ttl_s": 600_000}, {}, Code.BAD_REQUEST, "ttl_s: must be at most 86400"),
        (
            {
                "prompt": None,
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": f"data:{MARK}"}]}],
            },
            {},
            Code.UNSUPPORTED,
            "messages: the model takes fewer images",
        ),
    ],
)
def test_a_refusal_has_a_code_and_a_sentence_and_stores_nothing(desk, fields, properties, code, sentence):
    """It is told before the message is acknowledged, and repeats nothing the sender wrote."""
    body = {"job_id": "job-1", "prompt": "x"} | fields
    job_id, error = refusal(desk.take("job", body, **properties))
    assert (job_id, error["code"]) == ("job-1", code)
    assert sentence in error["message"]
    assert MARK not in error["message"]
    assert desk.find() is None


def test_the_agreed_response_topic_is_taken(desk):
    body = {"job_id": "job-1", "prompt": "x"}
    desk.take("job", body, response_topic="edge/v1/clients/line-3/inbox", traceparent="x" * 128, correlation=b"c" * 64)
    assert desk.find().state is JobState.QUEUED


def test_another_request_under_the_id_is_refused(desk):
    desk.submit()
    job_id, error = refusal(desk.submit(max_tokens=3))
    assert (job_id, error["code"]) == ("job-1", Code.DUPLICATE_ID)
    assert desk.take("job", {"job_id": "job-1", "prompt": "x"}, client="somebody")[0] == ("acked", 3)


def test_a_request_without_readable_id_is_answered_all_the_same(desk):
    job_id, error = refusal(desk.take("job", b"{"))
    assert (job_id, error["code"]) == ("unreadable", Code.BAD_REQUEST)
    job_id, error = refusal(desk.take("job", b"x" * (PAYLOAD_BYTES_MAX + 1)))
    assert (job_id, error["code"]) == ("unreadable", Code.PAYLOAD_TOO_LARGE)


def test_a_full_queue_says_when_to_come_back(tmp_path):
    """By number or by bytes; when a running job may end, or a guess before any was measured."""
    with Desk(tmp_path, high_water_jobs=1) as desk:
        desk.submit()
        _, error = refusal(desk.submit("job-2"))
        assert (error["code"], error["retryable"], error["retry_after_s"]) == (Code.QUEUE_FULL, True, 10.0)
        took = Took(JobWork(50, 256), completion_tokens=256, prompt_s=0.0, generate_s=6.0, busy_s=6.0, beside=0)
        desk.pace.note("phi", took, lanes=1)
        job = desk.claim()
        for elapsed_s, retry_after_s in ((2.0, 4.0), (3.5, 1.0)):
            desk.machine.pass_s(elapsed_s)
            assert refusal(desk.submit("job-2"))[1]["retry_after_s"] == retry_after_s
        desk.ask(lambda queue: queue.end(job, JobState.SUCCEEDED, ANSWER))
        assert desk.submit("job-2")[0][0] == "acked"


def test_a_queue_full_by_bytes(tmp_path):
    with Desk(tmp_path, high_water_bytes=2**20) as desk:
        for number in range(9):
            desk.submit(f"big-{number}", prompt="ü" * 60_000)
        _, error = refusal(desk.submit("job-2"))
        assert error["code"] == Code.QUEUE_FULL


def test_a_disk_nearly_full_takes_no_more_jobs(tmp_path):
    with Desk(tmp_path, free_bytes=10, min_free_bytes=11) as desk:
        _, error = refusal(desk.submit())
        assert (error["code"], error["retryable"]) == (Code.STORAGE_FULL, True)


def test_what_ended_jobs_hold_makes_room_before_anybody_is_refused(tmp_path):
    """Texts that are not owed any more go first; what is free in the file counts as free, for it can be used again."""
    free_bytes = [10**9]
    allowance = Allowance(RetentionBounds(10**9, 10**9), 5 * 10**6, lambda: free_bytes[0])
    with Desk(tmp_path, free_bytes=lambda: free_bytes[0], allowance=allowance, min_free_bytes=5 * 10**6) as desk:
        for number in range(40):
            desk.submit(f"job-{number}", prompt="x" * 100_000)
            desk.ask(lambda queue: queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER))
        free_bytes[0] = 2 * 10**6
        _, error = refusal(desk.take("job", json.loads(request().to_json()), client="line-4"))
        assert error["code"] == Code.STORAGE_FULL  # the broker has taken none of the results yet
        desk.ask(lambda queue: [queue.results.delivered(owed) for owed in queue.results.owed(100)])
        assert desk.submit("job-40")[0][0] == "acked"
        assert desk.find("job-0").request is None
        assert desk.submit("job-0", prompt="x" * 100_000)[0][:2] == ("answered", "job-0")


def test_who_takes_no_results_is_refused_and_nobody_else(tmp_path):
    """What is owed cannot be shed: beyond its share a requester gets no more, until the broker has taken it."""
    allowance = Allowance(RetentionBounds(10**9, 10**6), 0, lambda: 10**9)
    with Desk(tmp_path, allowance=allowance) as desk:
        for number in range(10):
            assert desk.submit(f"job-{number}", prompt="x" * 100_000)[0][0] == "acked"
            desk.finish()
        _, error = refusal(desk.submit("job-11"))
        assert (error["code"], error["retryable"]) == (Code.QUOTA_EXCEEDED, True)
        assert desk.take("job", json.loads(request("other").to_json()), client="line-4")[0][0] == "acked"
        desk.ask(lambda queue: [queue.results.delivered(owed) for owed in queue.results.owed(100)])
        assert desk.submit("job-11")[0][0] == "acked"


def test_a_disk_that_takes_nothing_refuses_and_acknowledges(desk, monkeypatch):
    """Nothing of the transaction happened, so nothing but the refusal is said of it."""
    disk = FullDisk(desk.queue, monkeypatch)
    disk.full = True
    body = json.loads(request().to_json())
    desk.receive("job", body)
    desk.receive("job", body)
    disk.wait_refusals(1)
    disk.full = False
    flush(desk.store)
    said = [entry[1]["error"]["code"] for entry in desk.journal if entry[0] == "said"]
    assert said[0] == Code.STORAGE_FULL
    assert [entry for entry in desk.journal if entry[0] == "acked"] == [("acked", 1), ("acked", 2)]
    accepted = desk.find() is not None
    assert len(said) == (1 if accepted else 2)
    assert accepted or not [entry for entry in desk.journal if entry[0] in ("answered", "told")]


def test_a_repeat_in_the_transaction_that_fails_is_not_answered_as_stored(tmp_path, monkeypatch):
    """Both came before the disk refused them: neither may be told `queued`."""
    desk = Desk(tmp_path)
    disk = FullDisk(desk.queue, monkeypatch)
    body = json.loads(request().to_json())
    desk.receive("job", body)
    desk.receive("job", body)
    disk.full = True
    desk.store.start()
    disk.wait_refusals(1)
    disk.full = False
    with desk:
        assert [entry[0] for entry in desk.journal] == ["said", "acked", "said", "acked"]
        assert {entry[1]["error"]["code"] for entry in desk.journal if entry[0] == "said"} == {Code.STORAGE_FULL}


def test_an_agent_without_models_says_so(tmp_path):
    with Desk(tmp_path, roster=FakeRoster()) as desk:
        assert refusal(desk.submit())[1]["code"] == Code.MODEL_MISSING


# Acknowledgements


def test_acknowledgements_come_in_the_order_of_arrival_after_the_commit(tmp_path):
    """Stored, refused, repeated and unintelligible messages alike; none before its row is on disk."""
    desk = Desk(tmp_path)
    on_disk = []

    def ack(mid):
        with desk.machine.queue(tmp_path) as other, other.transaction():
            on_disk.append((mid, sum(counts(other).values())))

    desk.ack = ack
    body = json.loads(request().to_json())
    for command, each in (("job", body), ("job", b"{"), ("job", body | {"job_id": "b"}), ("job", body), ("x", b"")):
        desk.receive(command, each)
    desk.receive("job", body, topic="edge/v1/agents/edge-01/cmd/job/UPPER")
    with desk:
        flush(desk.store)
        assert on_disk == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (6, 2)]


@pytest.mark.parametrize(
    "topic",
    [
        "edge/v1/agents/edge-01/cmd/job/x\n",
        "edge/v1/agents/edge-01/cmd/job/a/b",
        "edge/v1/agents/edge-01/cmd/job/",
        "edge/v1/agents/other/cmd/job/line-3",
    ],
)
def test_a_message_whose_author_cannot_be_answered_is_dropped_and_acknowledged(desk, topic):
    """Kept, it would come again for ever."""
    assert desk.take("job", b"{", topic=topic) == [("acked", 1)]


def test_an_unknown_command_is_refused_by_name(desk):
    _, error = refusal(desk.take("reboot", {"job_id": "job-1"}))
    assert error["code"] == Code.UNSUPPORTED
    assert "job, cancel, status" in error["message"]


def test_a_flood_of_qos_0_ends_at_a_bound(tmp_path, monkeypatch):
    """QoS 1 has its own bound, the link's receive maximum, and is never dropped."""
    monkeypatch.setattr(intake_module, "UNCONFIRMED_MAX", 2)
    desk = Desk(tmp_path)
    for number in range(10):
        desk.receive("job", json.loads(request(f"zero-{number}").to_json()), qos=0)
    desk.receive("job", json.loads(request("one").to_json()))
    with desk:
        assert desk.ask(counts) == {JobState.QUEUED: 4}
        assert desk.find("one") is not None


# Cancel


def test_a_cancel_before_its_job_wins_and_says_so(desk):
    job_id, error = refusal(desk.take("cancel", {"job_id": "job-1"}))
    assert (job_id, error["code"]) == ("job-1", Code.UNKNOWN_JOB)
    assert "should it still come, it ends canceled" in error["message"]
    assert desk.submit() == [("acked", 2), ("told", "job-1", JobState.CANCELED)]


def test_a_cancel_of_a_job_that_waits_to_be_tried_again_ends_it(desk):
    desk.submit()
    desk.ask(lambda queue: queue.fail(queue.claim("phi", idle=True), Outcome(error=ENGINE_DIED)))
    assert desk.find().not_before_s is not None
    assert desk.take("cancel", {"job_id": "job-1"}) == [("acked", 2), ("told", "job-1", JobState.CANCELED)]


def test_a_waiting_job_is_canceled_at_once(desk):
    desk.submit()
    assert desk.take("cancel", {"job_id": "job-1"}) == [("acked", 2), ("told", "job-1", JobState.CANCELED)]


def test_a_running_job_is_canceled_by_who_runs_it(desk):
    desk.submit()
    desk.claim()
    assert desk.take("cancel", {"job_id": "job-1"}) == [("cancel", "job-1", 1), ("acked", 2)]
    assert desk.find().cancel_requested


def test_a_cancel_in_the_transaction_of_the_claim_comes_after_it(tmp_path):
    """The dispatcher must hear of the job before it hears that the job shall end, or it would run to its end."""
    desk = Desk(tmp_path)
    with desk.queue.transaction():
        desk.queue.accept(request(), Envelope("line-3", 600.0), model="phi")
    desk.store.do(
        lambda queue: queue.claim("phi", idle=True),
        lambda job: desk.journal.append(("claimed", job.job_id, job.attempt)),
    )
    desk.receive("cancel", {"job_id": "job-1"})
    with desk:
        heard = [entry for entry in desk.journal if entry[0] in ("claimed", "cancel")]
        assert heard == [("claimed", "job-1", 1), ("cancel", "job-1", 1)]


def test_an_ended_job_is_answered_again(desk):
    desk.submit()
    desk.finish()
    assert desk.take("cancel", {"job_id": "job-1"}) == [("answered", "job-1", JobState.SUCCEEDED), ("acked", 2)]


@pytest.mark.parametrize("command", ["cancel", "status"])
def test_a_command_without_a_job_is_refused(desk, command):
    _, error = refusal(desk.take(command, {"job": "job-1"}))
    assert error["code"] == Code.BAD_REQUEST
    assert "job_id" in error["message"]


# Status


def test_the_state_of_a_known_job_is_told_again_with_its_result(desk):
    desk.submit()
    assert desk.take("status", {"job_id": "job-1"}) == [("answered", "job-1", JobState.QUEUED), ("acked", 2)]
    desk.finish()
    desk.ask(lambda queue: queue.results.delivered(queue.results.owed(1)[0]))
    assert desk.take("status", {"job_id": "job-1"})[0] == ("answered", "job-1", JobState.SUCCEEDED)
    assert len(desk.ask(lambda queue: queue.results.owed(10))) == 1


def test_an_unknown_job_is_said_to_be_unknown(desk):
    """Somebody else's is as unknown as one that never was."""
    desk.submit()
    for body, client in (({"job_id": "job-2"}, "line-3"), ({"job_id": "job-1"}, "somebody")):
        job_id, error = refusal(desk.take("status", body, client=client))
        assert (job_id, error["code"]) == (body["job_id"], Code.UNKNOWN_JOB)


# Images


PHOTO = b"\xff\xd8\xff\xe0" + bytes(2000)
SHA256 = hashlib.sha256(PHOTO).hexdigest()


def about(*images):
    """Return a request about images."""
    parts = [{"type": "text", "text": "What is this?"}, *images]
    return {"job_id": "job-1", "messages": [{"role": "user", "content": parts}]}


def named(sha256=SHA256):
    return {"type": "image_sha256", "sha256": sha256}


def inline(content=PHOTO):
    return {"type": "image_url", "image_url": f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"}


@pytest.fixture
def seeing(tmp_path):
    with Desk(tmp_path, roster=FakeRoster("phi", images=4)) as opened:
        yield opened


def files(desk):
    """Return the hashes of the images that lie there, each once for everybody who sent it."""
    folder = desk.spool.path("line-3", SHA256).parent
    return sorted(file.name.rpartition(".")[2] for file in folder.rglob("*") if file.is_file())


def test_a_job_with_its_images_is_queued_and_their_bytes_are_on_disk(seeing):
    """The row names them by hash; a repeat of the message is the same job; nobody claims it before they are decoded."""
    assert seeing.take("job", about(inline()))[0] == ("acked", 1)
    assert seeing.find().state is JobState.QUEUED
    assert "base64" not in seeing.find().request.text
    assert files(seeing) == [SHA256]
    assert ("answered", "job-1", JobState.QUEUED) in seeing.take("job", about(inline()))
    assert seeing.claim() is None
    seeing.ask(lambda queue: queue.images.prepared(queue.images.next_unprepared("phi", ahead=4), ()))
    assert seeing.claim().job_id == "job-1"


def test_a_job_whose_images_are_uploaded_apart_waits_for_them(seeing):
    """In parts or whole, whatever comes twice; with the last it is queued."""
    other = hashlib.sha256(b"other").hexdigest()
    assert ("told", "job-1", JobState.WAITING) in seeing.take("job", about(named(), named(other)))
    assert set(seeing.ask(lambda queue: queue.images.missing(queue.recall("line-3", "job-1")))) == {SHA256, other}
    assert seeing.take("image", b"other") == [("acked", 2)]
    first, second = ({"sha256": SHA256, "part": part, "parts": "2"} for part in "12")
    for user, content in ((second, PHOTO[1000:]), (second, PHOTO[1000:])):
        assert [kind for kind, *_ in seeing.take("image", content, user=user)] == ["acked"]
    assert ("told", "job-1", JobState.QUEUED) in seeing.take("image", PHOTO[:1000], user=first)
    assert [kind for kind, *_ in seeing.take("image", PHOTO[:1000], user=first)] == ["acked"]
    assert files(seeing) == sorted([SHA256, other])


def test_an_image_completes_every_job_of_its_sender_and_nobody_elses(seeing):
    """Another who sends it too has it as well."""
    for client, job_id in (("line-3", "job-1"), ("line-3", "job-2"), ("somebody", "theirs")):
        seeing.take("job", about(named()) | {"job_id": job_id}, client=client)
    queued = [("told", name, JobState.QUEUED) for name in ("job-1", "job-2")]
    assert [each for each in seeing.take("image", PHOTO) if each[0] == "told"] == queued
    assert seeing.find("theirs", "somebody").state is JobState.WAITING
    assert ("told", "theirs", JobState.QUEUED) in seeing.take("image", PHOTO, client="somebody")


@pytest.mark.parametrize(
    ("user", "client", "code", "sentence"),
    [
        ({}, "line-3", Code.UNKNOWN_JOB, "sha256: no waiting job of yours needs this image"),
        ({"sha256": SHA256}, "somebody", Code.UNKNOWN_JOB, "sha256: no waiting job of yours"),
        ({"sha256": SHA256}, "line-3", Code.BAD_IMAGE, "sha256: is not the hash of the payload"),
        ({"sha256": MARK}, "line-3", Code.BAD_REQUEST, "sha256: must be 64 hexadecimal digits"),
        ({"parts": "2"}, "line-3", Code.BAD_REQUEST, "sha256: is missing"),
        ({"part": "2", "sha256": SHA256}, "line-3", Code.BAD_REQUEST, "part: must be at most parts"),
        ({"part": "0"}, "line-3", Code.BAD_REQUEST, "part: must be a whole number from 1"),
        ({"parts": "99999", "sha256": SHA256}, "line-3", Code.BAD_REQUEST, "parts: must be at most 4096"),
        ({"part": MARK}, "line-3", Code.BAD_REQUEST, "part: must be a whole number from 1"),
    ],
)
def test_an_upload_that_cannot_be_taken_is_refused_and_leaves_nothing(seeing, user, client, code, sentence):
    seeing.take("job", about(named()))
    job_id, error = refusal(seeing.take("image", b'{"job_id": "job-1"}', user=user, client=client))
    assert (job_id, error["code"]) == ("unreadable", code)
    assert sentence in error["message"]
    assert MARK not in error["message"]
    assert files(seeing) == []


@pytest.mark.parametrize(
    ("room", "code", "sentence"),
    [
        (
            {"share_bytes": 1000},
            Code.QUOTA_EXCEEDED,
            "messages: the images of your unfinished jobs",
        ),
        ({"free_bytes": 0}, Code.STORAGE_FULL, "the device's disk is full"),
        ({}, Code.PAYLOAD_TOO_LARGE, "the image is over 8000 bytes"),
    ],
)
def test_an_image_there_is_no_room_for_ends_the_jobs_that_wait_for_it(tmp_path, monkeypatch, room, code, sentence):
    """Those of its sender, whichever part it is; others' wait on, and what was kept of it goes."""
    photo = PHOTO if room else PHOTO + bytes(8000)
    sha256 = hashlib.sha256(photo).hexdigest()
    with Desk(tmp_path, roster=FakeRoster("phi", images=4), **room) as desk:
        with monkeypatch.context() as roomy:
            roomy.setattr(desk.intake, "_free_bytes", lambda: 10**9)
            for job_id, client in (("one", "line-3"), ("two", "line-3"), ("theirs", "somebody")):
                desk.take("job", about(named(sha256)) | {"job_id": job_id}, client=client)
            desk.take("job", about(named("a" * 64)) | {"job_id": "needs another"})
            desk.take("image", photo[:500], user={"sha256": sha256, "part": "1", "parts": "2"})
        told = desk.take("image", photo[500:], user={"sha256": sha256, "part": "2", "parts": "2"})
        ended = [("told", name, JobState.FAILED) for name in ("one", "two")]
        assert ([kind for kind, *_ in told].count("acked"), [each for each in told if each[0] != "acked"]) == (1, ended)
        error = desk.find("one").outcome.error
        assert (error.code, error.message[: len(sentence)]) == (code, sentence)
        assert desk.find("theirs", "somebody").state is JobState.WAITING


def test_an_image_for_a_job_that_has_ended_is_refused(seeing):
    seeing.take("job", about(named()))
    assert ("told", "job-1", JobState.CANCELED) in seeing.take("cancel", {"job_id": "job-1"})
    assert refusal(seeing.take("image", PHOTO))[1]["code"] == Code.UNKNOWN_JOB


def test_a_job_whose_images_never_come_expires_and_says_so(seeing):
    seeing.take("job", about(named()) | {"ttl_s": 5})
    seeing.machine.pass_s(6)
    seeing.ask(lambda queue: queue.expire())
    job = seeing.find()
    assert job.state is JobState.EXPIRED
    assert job.outcome.error.code is Code.IMAGE_MISSING


def test_of_a_request_that_is_refused_no_image_is_kept(seeing):
    _, error = refusal(seeing.take("job", about(inline(), inline(b"no image"))))
    assert (error["code"], error["message"][:31]) == (Code.BAD_IMAGE, "messages.0.content.2.image_url:")
    assert files(seeing) == []


def test_images_beyond_the_quota_are_refused_until_a_job_has_ended(seeing):
    for number in range(4):
        seeing.take("job", about(inline(PHOTO + bytes([number]))) | {"job_id": f"job-{number}"})
    _, error = refusal(seeing.take("job", about(inline()) | {"job_id": "more"}))
    assert (error["code"], error["retryable"]) == (Code.STORAGE_FULL, True)
    seeing.take("cancel", {"job_id": "job-0"})
    seeing.ask(lambda queue: seeing.spool.sweep(*queue.images.needed()))
    assert ("told", "more", JobState.QUEUED) in seeing.take("job", about(inline()) | {"job_id": "more"})


def test_images_beyond_a_requesters_share_are_refused_by_field_until_a_job_has_ended(tmp_path):
    """Sent with a job or uploaded; another requester's are taken meanwhile, and are nothing to the first."""
    with Desk(tmp_path, roster=FakeRoster("phi", images=4), share_bytes=5000) as desk:
        more = PHOTO + b"2"
        by_hash = named(hashlib.sha256(more).hexdigest())
        desk.take("job", about(inline(), inline()) | {"job_id": "first"})
        desk.take("job", about(inline(PHOTO + b"1"), inline()) | {"job_id": "second"})
        assert ("told", "third", JobState.WAITING) in desk.take("job", about(by_hash) | {"job_id": "third"})
        assert ("told", "third", JobState.FAILED) in desk.take("image", more)
        error = desk.find("third").outcome.error
        assert (error.code, error.message[:10], error.retryable) == (Code.QUOTA_EXCEEDED, "messages: ", True)
        _, error = refusal(desk.take("job", about(inline(), inline(more)) | {"job_id": "fourth"}))
        assert (error["code"], error["message"][:31]) == (Code.QUOTA_EXCEEDED, "messages.0.content.2.image_url:")
        told = desk.take("job", about(inline(more)) | {"job_id": "theirs"}, client="somebody")
        assert ("told", "theirs", JobState.QUEUED) in told
        assert ("told", "fifth", JobState.WAITING) in desk.take("job", about(by_hash) | {"job_id": "fifth"})
        desk.take("cancel", {"job_id": "second"})
        assert ("told", "last", JobState.QUEUED) in desk.take("job", about(inline(more)) | {"job_id": "last"})


IMAGES = [PHOTO + bytes([number]) for number in range(2)]
HASHES = [hashlib.sha256(image).hexdigest() for image in IMAGES]


def bring(which, part, parts, content):
    """Return what uploads a part of an image, or other bytes in its name."""
    user = {"sha256": HASHES[which], "part": str(part), "parts": str(parts)}
    return "image", content, {"user": user}


def steps():
    """Return what one may do: jobs with images inside or by hash, uploads right and wrong, cancels, questions."""
    which, job_id = st.integers(0, 1), st.sampled_from(["j-1", "j-2", "j-3"])
    name = lambda fields, job_id: ("job", fields | {"job_id": job_id, "max_tokens": 9}, {})  # noqa: E731
    return st.one_of(
        st.builds(lambda n, job_id: name(about(named(HASHES[n])), job_id), which, job_id),
        st.builds(lambda n, job_id: name(about(inline(IMAGES[n])), job_id), which, job_id),
        st.builds(lambda n: bring(n, 1, 1, IMAGES[n]), which),
        st.builds(lambda n: bring(n, 1, 2, IMAGES[n][:1000]), which),
        st.builds(lambda n: bring(n, 2, 2, IMAGES[n][1000:]), which),
        st.builds(lambda n, parts: bring(n, 1, parts, b"guessed"), which, st.integers(1, 2)),
        st.builds(lambda job_id: ("cancel", {"job_id": job_id}, {}), job_id),
        st.builds(lambda job_id: ("status", {"job_id": job_id}, {}), job_id),
        st.just(("sweep", None, {})),
    )


def lived(folder, script):
    """Return all that one requester is told while a script runs, and what their jobs wait for in the end."""
    told = []
    with Desk(folder, roster=FakeRoster("phi", images=4), share_bytes=5000, quota_bytes=10**6) as desk:
        for client, (command, body, properties) in script:
            if command == "sweep":
                desk.ask(lambda queue: desk.spool.sweep(*queue.images.needed()))
                continue
            sent = body | {"job_id": f"{client}-{body['job_id']}"} if isinstance(body, dict) else body
            left = [each for each in desk.take(command, sent, client=client, **properties) if each[0] != "acked"]
            told += [each for each in left if client == "bob" or (each[0] != "said" and each[1].startswith("bob"))]
        jobs = [desk.find(f"bob-j-{number}", "bob") for number in (1, 2, 3)]
        waits = [
            desk.ask(lambda queue, job=job: queue.images.missing(job))
            for job in jobs
            if job and job.state is JobState.WAITING
        ]
        return told, [job and job.state for job in jobs], waits


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["alice", "bob"]), steps()), min_size=12, max_size=24))
def test_what_one_is_told_of_images_tells_nothing_of_what_another_has_sent(script):
    """Whatever both do: without the other everything is the same, word for word."""
    alone = [(client, step) for client, step in script if client == "bob" or step[0] == "sweep"]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        assert lived(Path(one), script) == lived(Path(two), alone)


def uploads(desk, count):
    """Receive parts of one byte of two images that `many` needs, as fast as they can be sent."""
    for number in range(count):
        user = {"sha256": f"{number % 2:064}", "part": str(1 + number // 2), "parts": "4096"}
        desk.receive("image", b"x", client="many", user=user)


def test_who_sends_an_image_in_a_thousand_parts_makes_the_disk_wait_a_few_times(seeing, monkeypatch):
    """What another's job waits for behind them: the groups they are committed in, not each of them."""
    for number in range(2):
        seeing.take("job", about(named(f"{number:064}")) | {"job_id": f"job-{number}"}, client="many")
    waits, fsync, entered, free = [], os.fsync, threading.Event(), threading.Event()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (waits.append(descriptor), fsync(descriptor)))
    seeing.store.do(lambda _queue: (entered.set(), free.wait(PATIENCE_S)))
    assert entered.wait(PATIENCE_S)
    uploads(seeing, 1000)
    free.set()
    assert seeing.submit("theirs")[-1] == ("told", "theirs", JobState.QUEUED)
    groups = -(-1000 // GROUP_MAX)
    assert len(waits) <= 1 + 2 * (groups + 1)  # the folder once, and both files with each group
    assert sum(entry[0] == "acked" for entry in seeing.journal) == 2 + 1000 + 1


@pytest.mark.parametrize("client", ["many", "somebody"])
def test_a_part_costs_the_same_however_many_images_are_awaited(seeing, client):
    """SQLite's own count of its steps: others' images, and one's own others, are not looked through."""

    def steps():
        counted = []
        count = seeing.queue._db.connection.set_progress_handler
        seeing.ask(lambda _queue: count(lambda: counted.append(1), 10))
        uploads(seeing, 50)
        seeing.ask(lambda _queue: count(None, 0))
        return len(counted)

    for number in range(2):
        seeing.take("job", about(named(f"{number:064}")) | {"job_id": f"job-{number}"}, client="many")
    few = steps()
    for number in range(300):
        job = about(named(f"{number + 10:064}"), named("0" * 64)) | {"job_id": f"more-{number}"}
        seeing.receive("job", job, client=client)
    flush(seeing.store)
    assert steps() < 2 * few


# Requesters


def test_a_requester_at_its_quota_is_refused_and_another_is_not(tmp_path):
    """Its own unfinished jobs count, and no finished ones; a full queue of one shuts nobody else out."""
    with Desk(tmp_path, max_jobs=2) as desk:
        for name in ("a", "b"):
            desk.submit(name)
        _, error = refusal(desk.submit("c"))
        assert (error["code"], error["retryable"], error["retry_after_s"]) == (Code.QUOTA_EXCEEDED, True, 10.0)
        body = json.loads(request("a").to_json())
        assert desk.take("job", body, client="somebody")[0][0] == "acked"
        desk.finish()
        assert desk.submit("c")[0][0] == "acked"


def test_a_quota_of_bytes(tmp_path):
    with Desk(tmp_path, max_bytes=1024) as desk:
        desk.submit("a", prompt="ü" * 600)
        assert refusal(desk.submit("b"))[1]["code"] == Code.QUOTA_EXCEEDED


def test_only_those_named_may_ask(tmp_path):
    """Nothing of theirs is taken, whichever command; a job of a pool may go to another agent."""
    with Desk(tmp_path, allow=["line-3"]) as desk:
        assert desk.submit()[0][0] == "acked"
        for command in ("job", "cancel", "status"):
            _, error = refusal(desk.take(command, {"job_id": "x", "prompt": "x"}, client="somebody"))
            assert (error["code"], error["retryable"]) == (Code.NOT_ALLOWED, False)
        _, error = refusal(desk.take("job", {"job_id": "x"}, topic="edge/v1/pools/hall/job/somebody"))
        assert error["retryable"]


def test_two_requesters_with_one_job_id_do_not_meet(desk):
    """Each has its own job: canceled, asked after and answered by itself."""
    desk.submit()
    assert desk.take("job", {"job_id": "job-1", "prompt": "another"}, client="somebody")[0] == ("acked", 2)
    desk.take("cancel", {"job_id": "job-1"}, client="somebody")
    assert desk.find().state is JobState.QUEUED
    assert desk.find(client="somebody").state is JobState.CANCELED


# Pools


def pool(name="hall", command="job", client="line-3"):
    return f"edge/v1/pools/{name}/{command}/{client}"


def test_a_job_of_a_pool_is_a_job_that_knows_its_pool(desk):
    body = json.loads(request().to_json())
    assert desk.take("job", body, topic=pool()) == [("acked", 1), ("told", "job-1", JobState.QUEUED)]
    assert desk.find().pool == "hall"
    assert desk.take("job", body, topic=pool())[0] == ("answered", "job-1", JobState.QUEUED)


@pytest.mark.parametrize(
    ("fields", "code"), [({"model": "other"}, Code.UNKNOWN_MODEL), ({"max_tokens": 0}, Code.BAD_REQUEST)]
)
def test_what_another_agent_may_do_better_is_retryable_in_a_pool(desk, fields, code):
    body = {"job_id": "job-1", "prompt": "x"} | fields
    _, error = refusal(desk.take("job", body, topic=pool()))
    assert (error["code"], error["retryable"]) == (code, code is Code.UNKNOWN_MODEL)
    assert not refusal(desk.take("job", body))[1]["retryable"]


def test_a_job_of_a_pool_that_comes_to_a_busy_agent_is_for_another(desk):
    """But not one it has already, and not one that was sent to it alone."""
    body = json.loads(request("mine").to_json())
    desk.take("job", body, topic=pool())
    desk.pool_full = True
    _, error = refusal(desk.take("job", {"job_id": "next", "prompt": "x"}, topic=pool()))
    assert (error["code"], error["retryable"]) == (Code.QUEUE_FULL, True)
    assert desk.take("job", body, topic=pool())[0] == ("answered", "mine", JobState.QUEUED)
    assert desk.submit("direct")[0][0] == "acked"


def test_a_cancel_in_a_pool_is_remembered_without_a_word(desk):
    """Most agents never had the job; the one that gets it later must not run it."""
    assert desk.take("cancel", {"job_id": "job-1"}, topic=pool(command="cancel")) == [("acked", 1)]
    body = json.loads(request().to_json())
    assert desk.take("job", body, topic=pool()) == [("acked", 2), ("told", "job-1", JobState.CANCELED)]


def test_a_cancel_in_a_pool_ends_a_job_that_is_here(desk):
    desk.take("job", json.loads(request().to_json()), topic=pool())
    desk.claim()
    cancel = pool(command="cancel")
    assert desk.take("cancel", {"job_id": "job-1"}, topic=cancel) == [("cancel", "job-1", 1), ("acked", 2)]


@pytest.mark.parametrize("topic", [pool(command="status"), pool(command="image"), pool(client="UPPER")])
def test_other_commands_to_a_pool_are_none(desk, topic):
    entries = desk.take("status", {"job_id": "job-1"}, topic=topic)
    assert entries[-1] == ("acked", 1)
    assert desk.find() is None


def test_images_of_ended_jobs_stand_in_nobodys_way(tmp_path):
    """They are removed a second later; when there is no room before that, at once."""
    with Desk(tmp_path, roster=FakeRoster("phi", images=4), quota_bytes=10_000, share_bytes=8_000) as desk:
        for number, client in enumerate(("line-3", "line-3", "line-4", "line-5")):
            photo = inline(b"\xff\xd8\xff" + bytes([number]) * 6_000)
            told = desk.take("job", about(photo) | {"job_id": f"job-{number}"}, client=client)
            assert ("told", f"job-{number}", JobState.QUEUED) in told
            desk.take("cancel", {"job_id": f"job-{number}"}, client=client)
        assert desk.spool.used_bytes < 8_000
