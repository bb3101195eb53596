"""Whose images are decoded next: nobody's hold up those of others for longer than a bound."""

from types import SimpleNamespace

import pytest
from fakes import PATIENCE_S, Time, accept
from running import wait_for
from structlog.testing import capture_logs

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.hosting.prover import NotTriedError, Prover
from edge_agent.engine.messages import ModelLimits
from edge_agent.images.decoder_process import IMAGE_S, BadImageError, DecodedImage, DecoderProcess, FullError
from edge_agent.images.fair_share import FREE_S, Shares
from edge_agent.images.spool import Holder, Spool
from edge_agent.jobs.job import TERMINAL
from edge_agent.jobs.store import Store
from edge_agent.running import preparation as preparation_module
from edge_agent.running.preparation import JOB_S, Preparation

SLOW, HOSTILE, PHOTO = b"slow", b"hostile", b"photo"
TOOK_S = {SLOW: 9.0, HOSTILE: 10.0, PHOTO: 0.1}


class Room(DecoderProcess):
    """Decodes nothing, and lets the time pass that each image takes."""

    def __init__(self, time):
        super().__init__(pixels=10_000)
        self._time = time
        self.looked = []

    def measure(self, file):
        """Return the size of any image but a hostile one."""
        kind, name, _ = file.read_bytes().split(b" ")
        self.looked.append(name.decode())
        self._time.pass_s(TOOK_S[kind])
        if kind == HOSTILE:
            raise BadImageError("was not decoded after 10 s")
        return 336, 336

    def develop(self, file, *, long_side, out):
        """Say that it is written."""
        return DecodedImage(336, 336, 336, 336, "0" * 64)


class Court(Prover):
    """Tries nothing, and lets the time pass that each guide takes; the first `hindered` cannot be tried."""

    def __init__(self, time):
        super().__init__()
        self._time = time
        self.asked, self.hindered = [], 0

    def prove(self, guide, engine):
        """Refuse the hostile one, after long."""
        assert engine == "engine"
        if self.hindered:
            self.hindered -= 1
            raise NotTriedError("no process")
        self.asked.append(guide.text)
        self._time.pass_s(3.0 if guide.text.startswith("hostile") else 0.01)
        if guide.text.startswith("hostile"):
            raise EdgeAgentError(Code.BAD_REQUEST, "response_format: takes over 2 s to compile; simplify it")


class Lab:
    """A queue and a spool to fill, then `run`."""

    def __init__(self, folder):
        self.time, self.ended, self.jobs, self.short = Time(), {}, 0, []
        self.room, self.court = Room(self.time), Court(self.time)
        self.queue = self.time.queue(folder)
        self.spool = Spool(folder / "images", quota_bytes=10_000, requester_quota_bytes=10_000, image_bytes=1_000)
        self.spool.open()

    def ask(self, client, *kinds, model="phi"):
        """Store a job with these images."""
        self.jobs += 1
        name, holder = f"{client}-{self.jobs}", Holder(client, set(), "payload")
        contents = [b"%s %s %d" % (kind, name.encode(), number) for number, kind in enumerate(kinds)]
        hashes = [self.spool.add(content, holder) for content in contents]
        parts = [{"type": "image_sha256", "sha256": sha256} for sha256 in hashes]
        messages = [{"role": "user", "content": parts}]
        job = accept(
            self.queue,
            name,
            client=client,
            model=model,
            here=dict.fromkeys(hashes, True),
            prompt=None,
            messages=messages,
        )
        self.time.pass_s(0.01)
        return job

    def guide(self, client, text, **more):
        """Store a job with a guide."""
        self.jobs += 1
        shape = {"type": "regex", "regex": text}
        job = accept(self.queue, f"{client}-{self.jobs}", client=client, response_format=shape, **more)
        self.time.pass_s(0.01)
        return job

    def tell(self, changes):
        """Take down which jobs ended."""
        self.ended |= {job.job_id: job for job in changes if job.state in TERMINAL}

    def run(self):
        """Decode until every job has ended or may be claimed."""
        ready = []
        self.store = store = Store(self.queue, keep_finished_s=86_400, keep_finished_jobs=1000, retry_s=0.01)
        preparation = Preparation(
            models=("phi", "psi"),
            store=store,
            spool=self.spool,
            decoder_process=self.room,
            guides=self.court,
            engines=SimpleNamespace(
                process=lambda _model: "engine",
                status=lambda _model: SimpleNamespace(limits=ModelLimits(4096, 1, images_per_prompt=8)),
            ),
            short=lambda: self.short.pop() if self.short else False,
            now_s=self.time.now_s,
        )
        store.on_changed.connect(self.tell)
        preparation.on_ready.connect(lambda: ready.append(None))
        store.start()
        preparation.start()
        try:
            wait_for(lambda: len(self.ended) + len(ready) == self.jobs, "all jobs to be decoded")
        finally:
            preparation.stop()
            store.stop()


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_nothing_is_decoded_into_the_room_that_jobs_need(lab, monkeypatch):
    """It is tried again a while later, when more is free."""
    monkeypatch.setattr(preparation_module, "RETRY_S", 0.01)
    lab.ask("one", PHOTO)
    lab.short = [True, True]
    lab.run()
    assert lab.room.looked == ["one-1"]
    assert not lab.short
    assert not lab.ended


def test_hostile_images_of_one_hold_up_anothers_once(lab):
    """For whatever model they are; and who holds nobody up keeps the order."""
    for _ in range(3):
        lab.ask("bad", HOSTILE)
    lab.ask("good", PHOTO)
    lab.ask("other", PHOTO, model="psi")
    lab.ask("bad", PHOTO)
    lab.run()
    assert lab.room.looked == ["bad-1", "good-4", "other-5", "bad-2", "bad-3", "bad-6"]
    assert list(lab.ended) == ["bad-1", "bad-2", "bad-3"]


def test_ordinary_images_are_decoded_in_the_order_of_their_jobs(lab):
    for client in ("one", "one", "one", "other"):
        lab.ask(client, PHOTO)
    lab.run()
    assert lab.room.looked == ["one-1", "one-2", "one-3", "other-4"]


def test_the_images_of_one_job_are_bounded_together(lab):
    """Each within its own bound."""
    job = lab.ask("one", *[SLOW] * 8)
    begun_s = lab.time.now_s()
    lab.run()
    error = lab.ended[job.job_id].outcome.error
    assert (error.code, error.message[:38]) == (Code.BAD_IMAGE, "messages: the images take over 30 s to")
    assert lab.time.now_s() - begun_s < JOB_S + IMAGE_S


@pytest.mark.parametrize("error", [FullError("No such file or directory"), BadImageError("is damaged or cut off")])
def test_a_job_that_ends_while_its_images_are_decoded_is_no_trouble(lab, monkeypatch, error):
    """What is swept under the child is neither a full disk nor a bad image; nothing is said, nothing waited for."""
    job = lab.ask("one", PHOTO)
    lab.ask("one", PHOTO)
    develop = Room.develop

    def swept(room, file, **where):
        if lab.ended:
            return develop(room, file, **where)
        lab.store.ask(lambda queue: queue.cancel("one", job.job_id), timeout_s=PATIENCE_S)
        lab.store.ask(lambda queue: lab.spool.sweep(*queue.images.needed()), timeout_s=PATIENCE_S)
        raise error

    monkeypatch.setattr(Room, "develop", swept)
    with capture_logs() as said:
        lab.run()
    assert (list(lab.ended), said) == ([job.job_id], [])


def test_hostile_guides_of_one_hold_up_anothers_once(lab):
    """Whatever model they are for; and what guides take counts with what images take."""
    for number in range(3):
        lab.guide("bad", f"hostile {number}")
    lab.guide("good", "yes")
    lab.guide("other", "no", model="psi")
    lab.ask("bad", PHOTO)
    lab.ask("good", PHOTO)
    lab.run()
    assert lab.court.asked == ["hostile 0", "yes", "no", "hostile 1", "hostile 2"]
    assert lab.room.looked == ["good-7", "bad-6"]
    assert list(lab.ended) == ["bad-1", "bad-2", "bad-3"]
    assert lab.ended["bad-1"].outcome.error.code is Code.BAD_REQUEST


def test_a_guide_that_could_not_be_tried_waits_and_is_said(lab, monkeypatch):
    """There was no process for it; its job is neither refused nor run untried."""
    monkeypatch.setattr("edge_agent.running.preparation.RETRY_S", 0.01)
    lab.court.hindered = 2
    lab.guide("one", "yes")
    with capture_logs() as said:
        lab.run()
    assert lab.court.asked == ["yes"]
    assert not lab.ended
    assert [each["event"] for each in said] == ["guides.waiting"] * 2


def test_what_was_used_is_forgotten():
    """A tenth in the same time; nobody is remembered for ever."""
    shares = Shares()
    shares.note("a", 0.7, now_s=0)
    shares.note("b", 10.0, now_s=10)
    assert shares.behind(now_s=10) == {"b"}
    shares.note("a", FREE_S, now_s=10)
    assert shares.behind(now_s=11) == {"b"}
    assert shares.behind(now_s=99) == {"b"}
    assert shares.behind(now_s=101) == frozenset()
    shares.note("c", 0.1, now_s=200)
    assert set(shares._used) == {"c"}
