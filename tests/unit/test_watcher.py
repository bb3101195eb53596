"""Watching: from messages to rows, the newest first, with nothing left of what was superseded."""

import hashlib
from functools import partial

import pytest
from fakes import ANSWER, FakeLink, FakeRoster, FullDisk, Time, counts, flush, request
from structlog.testing import capture_logs
from test_intake import FakeOutbox
from test_rules import TOPICS, read

from edge_agent.base.errors import EdgeAgentError
from edge_agent.images.spool import Spool
from edge_agent.jobs.backlog import Backlog
from edge_agent.jobs.job import JobState
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.store import Store
from edge_agent.mqtt.link import Receipt
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import Inbound
from edge_agent.serving.intake import Intake
from edge_agent.serving.strangers import Strangers
from edge_agent.settings.load import ImagesSection, QueueSection, RequestersSection
from edge_agent.watch import watcher as watcher_module
from edge_agent.watch.watcher import Watcher, session, subscriptions

SENSOR = {"name": "sensor", "topic": "a/+", "prompt": "{{ payload }}"}


class Tower:
    """A watcher with a real store behind it."""

    def __init__(self, folder, *tables, quota_bytes=2**24, share_bytes=2**24, **settings):
        self.machine = Time()
        self.link = FakeLink()
        self.told = []
        self.queue = self.machine.queue(folder)
        self.spool = Spool(
            folder / "images", quota_bytes=quota_bytes, requester_quota_bytes=share_bytes, image_bytes=2**20
        )
        self.spool.open()
        self.store = Store(self.queue, keep_finished_s=86_400, keep_finished_jobs=1000, retry_s=0.01)
        self.store.on_changed.connect(self._tell)
        self.intake = Intake(
            strangers=Strangers(lambda: 0.0),
            topics=TOPICS,
            speech=Speech(TOPICS),
            settings=QueueSection(**settings),
            images=ImagesSection(),
            spool=self.spool,
            store=self.store,
            requesters=RequestersSection(max_jobs=1),
            outbox=FakeOutbox([]),
            engines=FakeRoster("phi", images=1),
            pace=Pace(),
            free_bytes=lambda: 10**9,
        )
        ids = iter(range(1_000_000))
        self.watcher = Watcher(
            read(*tables),
            store=self.store,
            spool=self.spool,
            admit=self.intake.admit,
            ack=self.link.ack,
            now_s=self.machine.now_s,
            job_id=lambda: f"w-{next(ids)}",
        )
        self.mid = 0

    def _tell(self, changes):
        self.watcher.told(changes)
        self.told += changes

    def __enter__(self):
        self.store.start()
        return self

    def __exit__(self, *raised):
        self.store.stop()

    def see(self, topic, payload, *, qos=1, **properties):
        self.mid += 1
        self.watcher.receive(Inbound(topic, payload, qos=qos, **properties), Receipt(1, self.mid, qos))

    def waiting(self):
        """The prompts that wait, first to run first."""
        flush(self.store)
        return [job.asked.messages[-1].content for job in self.queue.overview.first("phi", 100)]

    def reading(self, name="sensor"):
        flush(self.store)
        (found,) = [each for each in self.watcher.readings() if each.watch == name]
        return found

    def ask(self, act):
        return self.store.ask(act)


def test_a_message_is_acknowledged_after_its_job_is_stored_and_so_is_one_that_makes_none(tmp_path):
    with Tower(tmp_path, SENSOR | {"when": {"payload": ["on", "off"]}}) as tower:
        tower.see("a/b", b"on")
        tower.see("a/b", b"unknown")
        tower.see("b/b", b"on")
        assert tower.waiting() == ["on"]
        assert [receipt.mid for receipt in tower.link.acked] == [1, 2, 3]
        reading = tower.reading()
        assert (reading.taken, reading.dropped) == (1, {"when": 1})
        (job,) = tower.queue.overview.first("phi", 9)
        assert (job.client, job.source, job.stream) == ("watch:sensor", "a/b", False)
        assert job.answer.topic == "edge/v1/agents/edge-01/watch/sensor"


def test_the_newest_takes_the_place_of_the_oldest_of_its_topic(tmp_path):
    """With two pending a topic, a hundred messages of two topics leave the last two of each, and no other rows."""
    with Tower(tmp_path, SENSOR | {"pending": 2}) as tower:
        for number in range(100):
            tower.see(f"a/{number % 2}", b"%d" % number)
        assert tower.waiting() == ["96", "97", "98", "99"]
        assert counts(tower.queue) == {"queued": 4}
        waiting = tower.queue.overview.first("phi", 9)
        assert tower.queue.backlog == Backlog(4, sum(len(job.request.text) for job in waiting))
        assert (tower.reading().taken, tower.reading().superseded) == (100, 96)
        assert {job.state for job in tower.told} == {JobState.QUEUED, JobState.CANCELED}


def test_the_newest_takes_the_place_of_an_older_one_where_there_is_no_other_room(tmp_path):
    """It needs no more than that one had: a full queue was no reason to answer the older."""
    with Tower(tmp_path, SENSOR, high_water_jobs=2) as tower:
        for payload in (b"1", b"2", b"3"):
            tower.see("a/b", payload)
            tower.see("a/c", payload)
        assert tower.waiting() == ["3", "3"]
        tower.see("a/d", b"one more")
        assert (tower.reading().taken, tower.reading().dropped) == (6, {"queue_full": 1})
        assert counts(tower.queue) == {"queued": 2}


def test_a_rule_has_no_more_waiting_than_it_may_over_all_its_topics(tmp_path):
    """The newest stay; the others are counted and said; what waits for another rule stays too."""
    rules = (
        SENSOR | {"waiting_jobs": 3, "pending": 2},
        {"name": "door", "topic": "door", "prompt": "open?", "image": "none"},
    )
    with Tower(tmp_path, *rules, high_water_jobs=5) as tower, capture_logs() as said:
        tower.see("door", b"x")
        running = tower.ask(lambda queue: queue.claim("phi", idle=True))
        tower.see("door", b"x")
        for number in range(50):
            tower.see(f"a/{number}", b"%d" % number)
        assert tower.waiting() == ["open?", "47", "48", "49"]
        tower.see("a/49", b"newer")
        assert tower.waiting() == ["open?", "48", "49", "newer"]
        reading = tower.reading()
        assert (reading.taken, reading.superseded, reading.dropped) == (51, 48, {"rule_full": 48})
        assert tower.ask(lambda queue: queue.recall("watch:door", running.job_id)).state is JobState.RUNNING
    counts_said = [each["count"] for each in said if each["event"] == "watch.dropped"]
    assert counts_said == [1, 2, 4, 8, 16, 32]


def test_what_watches_have_waiting_shuts_no_requester_out_nor_the_other_way_round(tmp_path):
    """As many of one rule as the queue takes, then as many of requesters."""
    with Tower(tmp_path, SENSOR, high_water_jobs=3) as tower:
        for number in range(9):
            tower.see(f"a/{number}", b"%d" % number)
        assert tower.reading().dropped == {"queue_full": 6}

        def ask(queue, number):
            asked = request(f"asked-{number}")
            model = tower.intake.admit(queue, asked, f"client-{number}")
            return queue.accept(asked, Envelope(f"client-{number}", 60.0), model=model)

        for number in range(3):
            tower.ask(partial(ask, number=number))
        with pytest.raises(EdgeAgentError, match="queue is full"):
            tower.ask(partial(ask, number=3))


def test_an_older_image_gives_way_in_a_rules_share_and_stays_where_that_is_not_enough(tmp_path):
    with Tower(tmp_path, SENSOR | {"prompt": "?"}, share_bytes=250_000) as tower:
        for number, topic in enumerate(("a/b", "a/c", "a/c")):
            tower.see(topic, jpeg(number))
        flush(tower.store)
        assert (tower.reading().taken, tower.reading().dropped) == (3, {})
        tower.see("a/b", jpeg(3, 200_000))
        assert (tower.reading().superseded, tower.reading().dropped) == (1, {"quota_exceeded": 1})
        assert counts(tower.queue) == {"queued": 2}
        assert tower.queue.backlog.jobs == 2
        needed, _ = tower.ask(lambda queue: queue.images.needed())
        hashes = sorted(hashlib.sha256(jpeg(number)).hexdigest() for number in (0, 2))
        assert sorted(needed) == [("watch:sensor", each) for each in hashes]
        assert all(tower.spool.has(*each) for each in needed)


def test_what_runs_is_never_superseded(tmp_path):
    with Tower(tmp_path, SENSOR) as tower:
        tower.see("a/b", b"1")
        running = tower.ask(lambda queue: queue.claim("phi", idle=True))
        tower.see("a/b", b"2")
        tower.see("a/b", b"3")
        assert tower.waiting() == ["3"]
        assert counts(tower.queue) == {"queued": 1, "running": 1}
        tower.ask(lambda queue: queue.end(running, JobState.SUCCEEDED, ANSWER))
        assert tower.reading().answered == 1


def test_what_did_not_succeed_leaves_nothing(tmp_path, capsys):
    """A job that failed or expired is counted and gone: nobody can ask for it."""
    with Tower(tmp_path, SENSOR | {"pending": 9}) as tower:
        tower.see("a/b", b"1", expiry_s=5)
        tower.see("a/b", b"2")
        tower.waiting()
        tower.machine.pass_s(6)
        tower.ask(lambda queue: queue.end(queue.claim("phi", idle=True), JobState.FAILED, ANSWER))
        assert counts(tower.queue) == {}
        assert tower.reading().failed == 2
        assert tower.queue.backlog == Backlog(0, 0)
        assert tower.queue.results.owed(9) == []
    assert "watch.failed" in capsys.readouterr().err


def test_answers_that_came_of_answers_end(tmp_path):
    """Rules of several agents may feed each other, which nobody's settings tell."""
    with Tower(tmp_path, SENSOR | {"pending": 9}) as tower:
        for count in ("0", "3", "4", "99", "no number"):
            tower.see("a/b", count.encode(), user={"edge-agent-hops": count})
        assert tower.waiting() == ["0", "3", "no number"]
        assert tower.reading().dropped == {"hops": 2}
        assert [job.answer.hops for job in tower.queue.overview.first("phi", 9)] == [1, 4, 1]
        assert len(tower.link.acked) == 5


def test_two_rules_may_take_one_message(tmp_path):
    with Tower(tmp_path, SENSOR, SENSOR | {"name": "other", "prompt": "Say {{ payload }}"}) as tower:
        tower.see("a/b", b"on")
        assert tower.waiting() == ["on", "Say on"]
        assert len(tower.link.acked) == 1


def test_a_full_queue_or_disk_costs_the_message_and_nothing_else(tmp_path, monkeypatch):
    with Tower(tmp_path, SENSOR | {"every_s": 100, "pending": 9}, high_water_jobs=1) as tower:
        tower.see("a/1", b"1")
        tower.see("a/2", b"2")
        flush(tower.store)
        assert tower.reading().dropped == {"queue_full": 1}
        tower.ask(lambda queue: queue.claim("phi", idle=True))
        disk = FullDisk(tower.queue, monkeypatch)
        disk.full = True
        tower.see("a/2", b"3")
        disk.wait_refusals(1)
        disk.full = False
        assert tower.reading().dropped == {"queue_full": 1, "storage_full": 1}
        assert len(tower.link.acked) == 3
        tower.ask(lambda queue: queue.end(queue._current(tower.told[0]), JobState.SUCCEEDED, ANSWER))
        tower.see("a/2", b"4")
        assert tower.waiting() == ["4"], "what was not stored counts for no rate"


def test_qos_0_that_finds_no_room_is_dropped_and_counted(tmp_path, monkeypatch):
    tower = Tower(tmp_path, SENSOR)  # its store does not run yet
    monkeypatch.setattr(watcher_module, "UNSTORED_MAX", 10)
    for _ in range(50):
        tower.see("a/b", b"x" * 100, qos=0)
    with tower:
        reading = tower.reading()
        assert (reading.taken, reading.dropped) == (11, {"behind": 39})
        assert len(tower.link.acked) == 50


@pytest.mark.parametrize("payload", [b"", b"\xff", b"{", b"[" * 50_000, b"\x00" * 1000, b'{"a": ""}'])
def test_no_payload_costs_more_than_a_count(tmp_path, payload):
    with Tower(tmp_path, SENSOR | {"prompt": "{{ json.a }}"}) as tower:
        tower.see("a/b", payload)
        tower.see("a/b", b'{"a": "fine"}')
        assert tower.waiting() == ["fine"]
        assert sum(tower.reading().dropped.values()) == 1
        assert len(tower.link.acked) == 2


def test_drops_are_said_seldom_and_without_what_came(tmp_path, capsys):
    """Of a thousand, ten sentences; none of what somebody asked to be dropped."""
    with Tower(tmp_path, SENSOR | {"prompt": "{{ json.a }}", "when": {"topic.2": "b"}}) as tower:
        for _ in range(1000):
            tower.see("a/b", b'{"b": "S3CRET"}')
            tower.see("a/c", b'{"b": "S3CRET"}')
        assert tower.reading().dropped == {"field_missing": 1000, "when": 1000}
    said = capsys.readouterr().err
    assert said.count("watch.dropped") == 10
    assert "S3CRET" not in said
    assert "json.a" in said


def test_subscriptions_overlap_nowhere_and_ask_for_the_best_of_their_rules():
    rules = read(
        {"topic": ["cams/+/person", "x/#"], "qos": 0},
        {"topic": "cams/front/+", "retained": "once"},
        {"topic": "y"},
    )
    assert [(each.topic, each.qos, each.retained) for each in subscriptions(rules)] == [
        ("x/#", 0, "never"),
        ("cams/+/+", 1, "new"),
        ("y", 1, "never"),
    ]
    assert not any(each.as_published for each in subscriptions(rules))


def test_other_filters_are_another_session():
    one, other = (subscriptions(read({"topic": topic})) for topic in ("a", "b"))
    assert session(one) == session(subscriptions(read({"topic": "a", "every_s": 3})))
    assert session(one) != session(other)


def jpeg(number, size=100_000):
    return b"\xff\xd8\xff" + number.to_bytes(4) * (size // 4)


def test_images_of_superseded_jobs_leave_the_disk(tmp_path):
    """A hundred photos of 100 kB into a spool of 1 MB: one waits, one lies on the disk, none found no room."""
    with Tower(tmp_path, SENSOR | {"prompt": "What is this?"}, quota_bytes=2**20) as tower:
        for number in range(100):
            tower.see("a/b", jpeg(number))
            flush(tower.store)
        flush(tower.store)
        assert (tower.reading().taken, tower.reading().dropped) == (100, {})
        (job,) = tower.queue.overview.first("phi", 9)
        ((image, text),) = [job.asked.messages[-1].content]
        assert text.text == "What is this?"
        lying = tower.spool.path("watch:sensor", image.sha256)
        assert lying.read_bytes() == jpeg(99)
        assert [file for file in (tmp_path / "images").iterdir() if file.is_file()] == [lying]


def test_an_image_too_large_or_one_too_many_is_counted(tmp_path):
    with Tower(tmp_path, SENSOR | {"prompt": "?", "every_s": 9}, quota_bytes=250_000) as tower:
        tower.see("a/large", jpeg(1, 2**21))
        for number in range(4):
            tower.see(f"a/{number}", jpeg(number))
        assert tower.reading().dropped == {"payload_too_large": 1, "storage_full": 2}
        assert tower.reading().taken == 2


def test_every_rule_has_a_share_of_the_spool(tmp_path):
    """One image more than it may have is counted, and the other rule's is taken."""
    rules = [{"name": name, "topic": f"{name}/+", "prompt": "?", "every_s": 9} for name in ("door", "yard")]
    with Tower(tmp_path, *rules, share_bytes=250_000) as tower:
        for number in range(3):
            tower.see(f"door/{number}", jpeg(number))
        tower.see("yard/0", jpeg(9))
        flush(tower.store)
        door, yard = tower.watcher.readings()
        assert (door.taken, door.dropped) == (2, {"quota_exceeded": 1})
        assert (yard.taken, yard.dropped) == (1, {})
