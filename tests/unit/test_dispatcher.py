"""Who runs when: lanes filled and kept full, jobs ended once, and nothing lost when an engine or the agent goes."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fakes import ENGINE_DIED, PATIENCE_S, Time, flush, request
from running import wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.guides.guide import TOO_SLOW
from edge_agent.engine.hosting.status import EngineStatus
from edge_agent.engine.messages import (
    Failed,
    Finished,
    FinishReason,
    JobId,
    ModelLimits,
    Progress,
    Ready,
    Text,
    TokenCounts,
)
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Fallback, JobState
from edge_agent.jobs.pace import Pace
from edge_agent.jobs.queue import RETRY_FIRST_S, Envelope
from edge_agent.jobs.store import Store
from edge_agent.running.attempt import ALONE_FIRST_S
from edge_agent.running.dispatcher import PROGRESS_S, Dispatcher
from edge_agent.running.occupancy import Occupancy


class FakeProcess:
    """An engine that keeps what it was told."""

    def __init__(self, parallel):
        limits = ModelLimits(context_tokens=4096, parallel=parallel)
        self.ready = Ready(limits, load_ms=1.0, library="fake 1", device="cpu")
        self.started, self.canceled = [], []

    def start(self, start, *, kept_bytes=0):
        self.started.append(start.generation)
        self.kept_bytes = kept_bytes

    def cancel(self, job_id):
        self.canceled.append(job_id)

    @property
    def ids(self):
        return [generation.job_id for generation in self.started]


class FakeOutbox:
    """Keeps the text of every stream it opened."""

    def __init__(self):
        self.streams, self.progressed, self.handed_back = [], [], []

    def open(self, job):
        self.streams.append(SimpleNamespace(job=job, texts=[], closed=False))
        return self.streams[-1]

    def write(self, stream, text, _tokens):
        stream.texts.append(text)

    def close(self, stream):
        stream.closed = True
        return len(stream.texts) - 1

    def hand_back(self, jobs, error):
        self.handed_back.extend((job.job_id, error.code) for job in jobs)

    def progress(self, job, *, tokens):
        self.progressed.append((job.job_id, tokens))


class Floor:
    """A dispatcher with a real store below it and scripted engines beside it."""

    def __init__(self, folder, *, parallel=2, apart=False):
        self.machine, self.frozen_s = Time(), 0.0
        self.told = []
        self.draining = set()
        self.store = Store(self.machine.queue(folder), keep_finished_s=86_400, keep_finished_jobs=1000)
        self.store.on_changed.connect(self._tell)
        self.engine = FakeProcess(parallel)
        self.processes = {"phi": self.engine}
        self.outbox = FakeOutbox()
        self.occupancy = {"phi": Occupancy()}
        self.dispatcher = Dispatcher(
            occupancy=self.occupancy,
            store=self.store,
            outbox=self.outbox,
            engines=self,
            supervisor=self,
            restraint=SimpleNamespace(lanes=lambda parallel: min(parallel, self.allowed)),
            pace=Pace(),
            guides=self,
            apart=apart,
            now_s=lambda: self.machine.now_s() - self.frozen_s,
        )
        self.allowed = 99
        self.spare, self.marked_for_kill, self.forgiven, self.fallback = False, [], [], None
        self.stopped = False
        self.proofs, self.refused = {}, []

    # as who tries guides

    def proven(self, guide, engine):
        assert engine is self.engine
        return self.proofs.get(guide.text)

    def refuse(self, guide, engine, error):
        assert engine is self.engine
        self.refused.append((guide.text, error.message))

    # as the supervisor

    def process(self, model):
        return self.processes.get(model)

    def takes_jobs(self, model):
        return model not in self.draining

    def mark_for_kill(self, model, process, failure):
        if self.spare:
            self.marked_for_kill.append((process, failure.code))
        return self.spare

    def reset_backoff(self, model):
        self.forgiven.append(model)

    def status(self, model):
        limits = self.engine.ready.limits
        return EngineStatus(model, "fake", Phase.READY, limits=limits, device="cpu", fallback=self.fallback)

    # as the store's listener

    def _tell(self, changes):
        self.told.extend((job.job_id, job.state) for job in changes)
        self.dispatcher.look()

    # as the test

    def __enter__(self):
        self.store.start()
        flush(self.store)
        self.dispatcher.start()
        return self

    def __exit__(self, *raised):
        self.stop()
        self.store.stop()

    def stop(self):
        if not self.stopped:
            self.stopped = True
            self.dispatcher.stop()

    def ask(self, act):
        return self.store.ask(act, timeout_s=PATIENCE_S)

    def accept(self, *names, ttl_s=600.0, **fields):
        """Store jobs in one transaction."""

        def act(queue):
            for name in names:
                queue.accept(request(name, **fields), Envelope("line-3", ttl_s), model="phi")

        self.ask(act)

    def say(self, event):
        self.dispatcher.said("phi", event)

    def find(self, name):
        return self.ask(lambda queue: queue.recall("line-3", name))

    def wait_started(self, *ids, engine=None):
        engine = engine or self.engine
        wait_for(lambda: len(engine.ids) >= len(ids), f"{ids} to be started", PATIENCE_S)
        assert engine.ids == list(ids)

    def wait_state(self, name, state):
        wait_for(lambda: self.find(name).state is state, f"{name} to be {state}", PATIENCE_S)
        return self.find(name)

    @contextmanager
    def disk_held(self):
        """Nothing is committed meanwhile."""
        held, go_on = threading.Event(), threading.Event()

        def hold(_queue):
            held.set()
            assert go_on.wait(PATIENCE_S)

        self.store.do(hold)
        assert held.wait(PATIENCE_S)
        try:
            yield
        finally:
            go_on.set()

    def quiet(self):
        """Wait until the dispatcher has taken every note and the store done what followed."""
        for _ in range(3):
            wait_for(self.dispatcher._notes.empty, "the dispatcher to take its notes", PATIENCE_S)
            flush(self.store)

    def pass_s(self, seconds):
        self.machine.pass_s(seconds)
        self.dispatcher.look()


@pytest.fixture
def floor(tmp_path):
    with Floor(tmp_path) as opened:
        yield opened


def finished(job_id, reason=FinishReason.STOP):
    return Finished(JobId(job_id), reason, TokenCounts(18, 6, 12), prompt_ms=60.0, generate_ms=200.0)


def outcome_of(job):
    return job.outcome


# Lanes


def test_free_lanes_are_filled_in_order_and_no_more(floor):
    floor.accept("a", "b", "c")
    floor.wait_started("1.1", "2.1")
    floor.quiet()
    assert floor.engine.ids == ["1.1", "2.1"]
    assert floor.dispatcher.running("phi") == 2


def test_a_lane_that_gets_free_is_filled_again(floor):
    floor.accept("a", "b", "c")
    floor.wait_started("1.1", "2.1")
    floor.say(finished("1.1"))
    floor.wait_started("1.1", "2.1", "3.1")


def test_an_engine_gets_what_the_request_said(floor):
    floor.accept("a", max_tokens=7, temperature=0.5, stop="END", seed=3)
    floor.wait_started("1.1")
    generation = floor.engine.started[0]
    assert (generation.max_tokens, generation.temperature, generation.stop, generation.seed) == (7, 0.5, ("END",), 3)
    assert [(turn.role, turn.text) for turn in generation.turns] == [("user", "What is on the belt?")]


def test_without_an_engine_jobs_wait_for_one(tmp_path):
    with Floor(tmp_path) as floor:
        floor.processes = {}
        floor.accept("a")
        floor.quiet()
        assert floor.find("a").state is JobState.QUEUED
        floor.processes = {"phi": floor.engine}
        floor.dispatcher.up("phi", 1e9)
        floor.wait_started("1.1")


def test_an_engine_that_is_to_go_gets_nothing_new(floor):
    """What runs in it ends; when it stays after all, others are claimed."""
    floor.accept("a")
    floor.wait_started("1.1")
    floor.draining = {"phi"}
    floor.accept("b")
    floor.quiet()
    assert floor.find("b").state is JobState.QUEUED
    assert floor.occupancy["phi"].busy
    floor.say(finished("1.1"))
    floor.wait_state("a", JobState.SUCCEEDED)
    wait_for(lambda: not floor.occupancy["phi"].busy, "nothing to run")
    floor.draining = set()
    floor.dispatcher.look()
    floor.wait_started("1.1", "2.1")


def test_a_lane_that_gets_free_while_the_queue_is_asked_is_not_forgotten(floor):
    """The answer told of lanes as they had been: a job that must run alone waited for the canceled one to let go."""
    floor.accept("a", "b")
    floor.wait_started("1.1", "2.1")
    floor.say(Failed(JobId("1.1"), Code.OUT_OF_MEMORY, "the device has no memory for it"))
    floor.wait_state("a", JobState.QUEUED)
    floor.pass_s(RETRY_FIRST_S)
    floor.dispatcher.cancel(floor.ask(lambda queue: queue.cancel("line-3", "b")))
    floor.wait_state("b", JobState.CANCELED)
    floor.quiet()
    with floor.disk_held():
        floor.dispatcher.look()
        wait_for(lambda: floor.dispatcher._lanes["phi"].claiming, "the queue to be asked", PATIENCE_S)
        floor.say(finished("2.1", FinishReason.CANCELED))
        wait_for(lambda: not floor.dispatcher.running("phi"), "the lane to be free", PATIENCE_S)
    floor.wait_started("1.1", "2.1", "1.2")


def test_the_queue_is_not_asked_for_every_token(floor):
    floor.accept("a")
    floor.wait_started("1.1")
    floor.quiet()
    with floor.disk_held():
        for number in range(50):
            floor.say(Text(JobId("1.1"), f" {number}", 1))
        wait_for(lambda: len(floor.outbox.streams[0].texts) == 50, "the text", PATIENCE_S)
        assert floor.store.waiting == 0
    floor.say(finished("1.1"))
    floor.wait_state("a", JobState.SUCCEEDED)


def test_what_is_claimed_in_the_last_moment_goes_back(floor):
    """The queue answers a dispatcher that has stopped: the job was never begun, and keeps its strikes."""
    floor.draining = {"phi"}
    floor.accept("a")
    with floor.disk_held():
        floor.draining = set()
        floor.dispatcher.look()
        wait_for(lambda: floor.occupancy["phi"].busy, "the queue to be asked", PATIENCE_S)
        floor.stop()
    wait_for(lambda: floor.find("a").attempt == 1, "the queue to answer", PATIENCE_S)
    assert floor.wait_state("a", JobState.QUEUED).strikes == 0
    assert floor.engine.ids == []


@pytest.mark.parametrize(("apart", "owner"), [(True, "line-3"), (False, "")])
def test_an_engine_learns_whose_a_job_is_where_clients_are_kept_apart(tmp_path, apart, owner):
    with Floor(tmp_path, apart=apart) as floor:
        floor.accept("a")
        floor.wait_started("1.1")
        assert floor.engine.started[0].owner == owner


# Ends


def test_text_goes_to_the_stream_and_whole_into_the_result(floor):
    """With what the engine counted and measured, and the number of the last chunk."""
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(Progress(JobId("1.1"), unprocessed_tokens=18))
    floor.say(Text(JobId("1.1"), "The pump", 2))
    floor.say(Text(JobId("1.1"), " is off.", 4))
    floor.say(finished("1.1"))
    outcome = outcome_of(floor.wait_state("a", JobState.SUCCEEDED))
    assert (outcome.text, outcome.finish_reason, outcome.last_seq) == ("The pump is off.", "stop", 1)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens, outcome.usage.total_tokens) == (18, 6, 24)
    assert outcome.usage.prompt_tokens_details.cached_tokens == 12
    assert outcome.timings.generate_per_second == 30.0
    assert outcome.timings.prompt_per_second == 100.0
    assert outcome.device == "cpu"
    assert floor.outbox.streams[0].texts == ["The pump", " is off."]


def test_a_job_that_failed_keeps_its_text_and_says_why(floor):
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(Text(JobId("1.1"), "The", 1))
    floor.say(Failed(JobId("1.1"), Code.PROMPT_TOO_LONG, "messages: 5000 tokens, the model takes 4096"))
    outcome = outcome_of(floor.wait_state("a", JobState.FAILED))
    assert (outcome.text, outcome.error.code) == ("The", Code.PROMPT_TOO_LONG)


@pytest.mark.parametrize(
    ("seconds", "fields", "state", "code"),
    [
        (5.0, {"timeout_s": 5}, JobState.FAILED, Code.TIMEOUT),
        (20.0, {"ttl_s": 20.0, "timeout_s": 300}, JobState.EXPIRED, Code.EXPIRED),
    ],
)
def test_time_ends_a_running_job_which_keeps_its_text(floor, seconds, fields, state, code):
    """Its engine is told to stop; the lane is free only when it did, and what it still says is dropped."""
    floor.accept("a", **fields)
    floor.wait_started("1.1")
    floor.say(Text(JobId("1.1"), "The pump", 2))
    wait_for(lambda: floor.outbox.streams[0].texts, "the text", PATIENCE_S)
    floor.pass_s(seconds)
    outcome = outcome_of(floor.wait_state("a", state))
    assert (outcome.text, outcome.error.code) == ("The pump", code)
    assert floor.engine.canceled == ["1.1"]
    assert floor.dispatcher.running("phi") == 1
    floor.say(Text(JobId("1.1"), " never said", 1))
    floor.say(finished("1.1", FinishReason.CANCELED))
    wait_for(lambda: floor.dispatcher.running("phi") == 0, "the lane to be free", PATIENCE_S)
    assert outcome_of(floor.find("a")) == outcome
    assert floor.outbox.streams[0].texts == ["The pump"]


def test_what_was_frozen_costs_a_job_of_its_life_but_not_of_its_time_to_run(floor):
    """Whoever waits for the answer has waited; whoever was to give it could not."""
    floor.accept("a", timeout_s=5, ttl_s=600.0)
    floor.accept("b", timeout_s=5, ttl_s=20.0)
    floor.wait_started("1.1", "2.1")
    floor.frozen_s = 100.0
    floor.pass_s(100.0)
    floor.wait_state("b", JobState.EXPIRED)
    assert floor.find("a").state is JobState.RUNNING
    floor.pass_s(5.0)
    assert outcome_of(floor.wait_state("a", JobState.FAILED)).error.code is Code.TIMEOUT


def test_a_running_job_repeats_its_state(floor):
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(Text(JobId("1.1"), "The pump", 2))
    wait_for(lambda: floor.outbox.streams[0].texts, "the text", PATIENCE_S)
    for repeat in (1, 2):
        floor.pass_s(PROGRESS_S)
        wait_for(lambda repeat=repeat: len(floor.outbox.progressed) == repeat, "progress", PATIENCE_S)
    assert floor.outbox.progressed == [("a", 2), ("a", 2)]


def test_a_canceled_job_ends_at_once_with_its_text(floor):
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(Text(JobId("1.1"), "The", 1))
    floor.dispatcher.cancel(floor.ask(lambda queue: queue.cancel("line-3", "a")))
    outcome = outcome_of(floor.wait_state("a", JobState.CANCELED))
    assert (outcome.text, outcome.finish_reason, outcome.error.code) == ("The", "canceled", Code.CANCELED)
    assert floor.engine.canceled == ["1.1"]
    assert floor.told.count(("a", JobState.CANCELED)) == 1


def test_what_finished_before_its_cancel_was_heard_has_finished(floor):
    """The row decides: whichever was committed first."""
    floor.accept("a")
    floor.wait_started("1.1")
    job = floor.ask(lambda queue: queue.cancel("line-3", "a"))
    floor.say(finished("1.1"))
    floor.dispatcher.cancel(job)
    floor.wait_state("a", JobState.SUCCEEDED)
    floor.quiet()
    assert floor.engine.canceled == []


def test_what_the_engine_had_no_memory_for_is_tried_again_by_itself(floor):
    """Its neighbours may have been why; what is wrong with the job itself ends it at once."""
    floor.accept("a", "b")
    floor.wait_started("1.1", "2.1")
    floor.say(Failed(JobId("1.1"), Code.OUT_OF_MEMORY, "the device has no memory for it"))
    again = floor.wait_state("a", JobState.QUEUED)
    assert (again.strikes, again.alone) == (1, True)
    floor.pass_s(RETRY_FIRST_S)
    floor.quiet()
    assert floor.engine.ids == ["1.1", "2.1"]
    floor.say(finished("2.1"))
    floor.wait_started("1.1", "2.1", "1.2")


def test_a_job_of_a_pool_that_is_too_long_for_this_model_goes_back_to_the_pool(floor):
    """Another agent may have a longer context. One that was sent to this agent fails."""
    too_long = EdgeAgentError(Code.PROMPT_TOO_LONG, "messages: 5000 tokens, the model takes 4096")
    floor.ask(lambda queue: queue.accept(request("p"), Envelope("line-3", 600.0, "hall"), model="phi"))
    floor.accept("a")
    floor.wait_started("1.1", "2.1")
    for job_id in ("1.1", "2.1"):
        floor.say(Failed(JobId(job_id), too_long.code, too_long.message))
    assert outcome_of(floor.wait_state("a", JobState.FAILED)).error.code is Code.PROMPT_TOO_LONG
    assert floor.find("p") is None
    assert floor.outbox.handed_back == [("p", Code.PROMPT_TOO_LONG)]


# Engines that die


def test_jobs_of_a_lost_engine_run_again_each_alone(floor):
    """One after the other on the next engine; events of the lost one change nothing."""
    floor.accept("a", "b")
    floor.wait_started("1.1", "2.1")
    lost, floor.engine = floor.engine, FakeProcess(2)
    floor.processes = {"phi": floor.engine}
    floor.dispatcher.lost("phi", ENGINE_DIED)
    floor.say(finished("1.1"))
    floor.wait_started("1.2")
    assert lost.ids == ["1.1", "2.1"]
    floor.quiet()
    assert floor.engine.ids == ["1.2"]
    assert floor.find("a").state is JobState.RUNNING
    floor.say(finished("1.2"))
    floor.wait_started("1.2", "2.2")
    floor.say(finished("2.2"))
    assert floor.wait_state("b", JobState.SUCCEEDED).strikes == 1


def test_a_job_that_has_run_alone_for_long_goes_on_in_company(floor):
    """What ends engines mostly does so soon. Of one that hangs nothing is heard, and nobody is put beside it."""
    begun = ["1.1", "2.1", "1.2"]
    floor.accept("a", "b")
    floor.wait_started(*begun[:2])
    floor.dispatcher.lost("phi", ENGINE_DIED)
    floor.wait_started(*begun)
    floor.accept("waits")
    for seconds, says in ((2 * ALONE_FIRST_S - 0.1, True), (0.2, False)):  # its second attempt: twice as long
        floor.pass_s(seconds)
        if says:
            floor.say(Text(JobId("1.2"), "a", 1))
        floor.quiet()
        assert floor.engine.ids == begun
    floor.say(Text(JobId("1.2"), "a", 1))
    floor.wait_started(*begun, "3.1")
    floor.dispatcher.lost("phi", ENGINE_DIED)  # nobody knows of which: its next attempt is its own for longer
    floor.wait_started(*begun, "3.1", "1.3")
    floor.pass_s(2 * ALONE_FIRST_S + 0.1)
    floor.say(Text(JobId("1.3"), "a", 1))
    floor.quiet()
    assert len(floor.engine.ids) == 5


def test_a_job_that_kills_its_engine_each_time_fails_in_the_end(floor):
    floor.accept("a", max_attempts=2)
    for attempt in (1, 2):
        floor.wait_started(*(f"1.{each}" for each in range(1, attempt + 1)))
        floor.dispatcher.lost("phi", ENGINE_DIED)
        floor.quiet()
        floor.pass_s(RETRY_FIRST_S)
        flush(floor.store)
    failed = floor.wait_state("a", JobState.FAILED)
    assert (failed.attempt, outcome_of(failed).error.code) == (2, Code.ENGINE_DIED)
    assert all(stream.closed for stream in floor.outbox.streams)


# Devices that fail


def test_a_job_whose_device_failed_goes_on_at_the_next_place_without_a_strike(floor):
    """Its neighbours too; each alone, for it may have been one of them."""
    floor.accept("a", "b", max_attempts=1)
    floor.wait_started("1.1", "2.1")
    floor.dispatcher.lost("phi", ENGINE_DIED, "phi on npu")
    floor.wait_started("1.1", "2.1", "1.2")
    floor.say(finished("1.2"))
    floor.wait_started("1.1", "2.1", "1.2", "2.2")
    floor.say(finished("2.2"))
    assert floor.wait_state("a", JobState.SUCCEEDED).strikes == floor.wait_state("b", JobState.SUCCEEDED).strikes == 1
    assert floor.forgiven == []


def test_a_job_that_kills_every_place_ends_and_the_places_are_forgiven(floor):
    """Once free at each place but the last, then by its strikes, wherever it runs."""
    floor.accept("a", max_attempts=2)
    for attempt, place in enumerate(("phi on npu", "phi on gpu", None, "phi on npu"), 1):
        floor.wait_started(*(f"1.{each}" for each in range(1, attempt + 1)))
        floor.dispatcher.lost("phi", ENGINE_DIED, place)
        floor.quiet()
        assert floor.forgiven == ["phi"] * max(0, attempt - 2)
        floor.pass_s(RETRY_FIRST_S)
        flush(floor.store)
    failed = floor.wait_state("a", JobState.FAILED)
    assert (failed.attempt, failed.strikes) == (4, 2)


def test_a_job_that_fails_at_one_place_twice_is_to_blame(floor):
    """The place had come back meanwhile."""
    floor.accept("a", max_attempts=1)
    for attempt in (1, 2):
        floor.wait_started(*(f"1.{each}" for each in range(1, attempt + 1)))
        floor.dispatcher.lost("phi", ENGINE_DIED, "phi on npu")
        floor.quiet()
    assert floor.wait_state("a", JobState.FAILED).attempt == 2
    assert floor.forgiven == ["phi"]


def test_an_engine_that_computes_no_numbers_is_ended_and_the_job_runs_at_the_next_place(floor):
    """It stays in its lane until the engine is gone; nothing is told of the failure."""
    floor.spare = True
    floor.accept("a", max_attempts=1)
    floor.wait_started("1.1")
    floor.say(Failed(JobId("1.1"), Code.MODEL_ERROR, "the model computes no numbers"))
    floor.quiet()
    assert floor.marked_for_kill == [(floor.engine, Code.MODEL_ERROR)]
    assert floor.find("a").state is JobState.RUNNING
    floor.dispatcher.lost("phi", ENGINE_DIED, "phi on npu")
    floor.wait_started("1.1", "1.2")
    floor.say(finished("1.2"))
    assert floor.wait_state("a", JobState.SUCCEEDED).strikes == 1


@pytest.mark.parametrize(
    ("spare", "code"), [(False, Code.MODEL_ERROR), (True, Code.PROMPT_TOO_LONG), (True, Code.BAD_REQUEST)]
)
def test_at_the_last_place_and_for_faults_of_its_own_a_job_fails_as_ever(floor, spare, code):
    floor.spare = spare
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(Failed(JobId("1.1"), code, "no"))
    assert outcome_of(floor.wait_state("a", JobState.FAILED)).error.code is code
    assert floor.marked_for_kill == []


def test_a_job_that_an_earlier_version_took_and_this_one_would_not_ends_alone(floor, monkeypatch):
    """Its request is read anew when it is begun: that ends it, and not the agent."""
    with monkeypatch.context() as patch:
        patch.setattr("edge_agent.jobs.request.LEAST", 0.0)
        floor.accept("a", "b", temperature=5e-324)
    floor.accept("c")
    failed = floor.wait_state("a", JobState.FAILED)
    assert outcome_of(failed).error.code == Code.BAD_REQUEST
    assert outcome_of(failed).error.message.startswith("temperature: is taken no more by this version")
    floor.wait_started("3.1")


def test_the_result_tells_what_its_device_stood_in_for(floor):
    floor.fallback = Fallback(variant="phi", backend="openvino", device="npu", reason="it hung")
    floor.accept("a")
    floor.wait_started("1.1")
    floor.say(finished("1.1"))
    outcome = outcome_of(floor.wait_state("a", JobState.SUCCEEDED))
    assert (outcome.device, outcome.fallback_from) == ("cpu", floor.fallback)


# The end of the day


def test_draining_finishes_what_runs_and_claims_no_more(floor):
    floor.accept("a")
    floor.wait_started("1.1")
    assert not floor.dispatcher.drain(0.01)
    floor.accept("b")
    floor.say(finished("1.1"))
    assert floor.dispatcher.drain(PATIENCE_S)
    floor.quiet()
    assert floor.find("a").state is JobState.SUCCEEDED
    assert floor.find("b").state is JobState.QUEUED


def test_what_still_runs_goes_back_in_its_place_with_its_strike(floor):
    """The next start runs it as if it had never begun, but under a new attempt."""
    floor.accept("a")
    floor.wait_started("1.1")
    floor.dispatcher.drain(0.01)
    floor.stop()
    job = floor.find("a")
    assert (job.state, job.strikes, job.attempt, job.alone) == (JobState.QUEUED, 0, 1, False)


def test_a_job_to_be_canceled_is_not_handed_back(floor):
    """Its cancel came in the last moment: it ends canceled, not queued for the next start."""
    floor.accept("a")
    floor.wait_started("1.1")
    floor.ask(lambda queue: queue.cancel("line-3", "a"))
    floor.dispatcher.drain(0.01)
    floor.stop()
    assert floor.find("a").state is JobState.CANCELED


# Held back


def test_no_more_lanes_are_used_than_are_allowed_and_all_again_when_they_are(tmp_path):
    with Floor(tmp_path, parallel=4) as floor:
        floor.allowed = 1
        floor.accept("a", "b", "c")
        floor.wait_started("1.1")
        floor.quiet()
        assert floor.engine.ids == ["1.1"]
        floor.allowed = 4
        floor.dispatcher.look()
        floor.wait_started("1.1", "2.1", "3.1")


def test_jobs_of_an_engine_that_is_unloaded_go_back_to_their_place_unharmed(floor):
    """With their strike returned; what the engine still says of them is nobody's, and the next one begins anew."""
    floor.accept("a", "b", max_attempts=1)
    floor.wait_started("1.1", "2.1")
    floor.say(Text(JobId("1.1"), "half", 1))
    del floor.processes["phi"]
    floor.dispatcher.unloaded("phi")
    job = floor.wait_state("a", JobState.QUEUED)
    assert (job.strikes, job.alone) == (0, False)
    floor.say(finished("1.1"))
    floor.quiet()
    assert floor.find("a").state is JobState.QUEUED
    assert all(stream.closed for stream in floor.outbox.streams)
    floor.processes["phi"] = reloaded = FakeProcess(2)
    floor.dispatcher.up("phi", 1e9)
    floor.wait_started("1.2", "2.2", engine=reloaded)


def guided(floor, text):
    """Store a job with a guide that was tried with what ran when it came."""
    asked = request("g", response_format={"type": "regex", "regex": text})
    floor.ask(lambda queue: queue.accept(asked, Envelope("line-3", 600.0), model="phi", proven=True))


def test_a_guide_that_nobody_tried_with_what_runs_now_reaches_no_engine(floor):
    """Its job waits until it is tried, and lost nothing; others go on."""
    guided(floor, "yes")
    wait_for(lambda: floor.find("g").unprepared, "the job to be put back", PATIENCE_S)
    waiting = floor.find("g")
    assert (waiting.state, waiting.strikes, waiting.attempt) == (JobState.QUEUED, 0, 1)
    floor.accept("a")
    floor.wait_started("2.1")


def test_a_guide_that_was_tried_reaches_the_engine(floor):
    """With what the engine will keep of it."""
    floor.proofs["yes"] = 70
    guided(floor, "yes")
    floor.wait_started("1.1")
    assert (floor.engine.started[0].guide.text, floor.engine.kept_bytes) == ("yes", 70)


def test_a_guide_that_held_up_an_engine_is_refused_from_then_on(floor):
    floor.proofs["yes"] = 70
    guided(floor, "yes")
    floor.wait_started("1.1")
    floor.say(Failed(JobId("1.1"), Code.BAD_REQUEST, TOO_SLOW))
    floor.wait_state("g", JobState.FAILED)
    assert floor.refused == [("yes", TOO_SLOW)]
