"""What leaves: results until the broker answers, states in order, text in time, never too much at once."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import ANSWER, PATIENCE_S, FakeLink, Time, counts, flush, request
from running import wait_for

from edge_agent.jobs.job import Destination, JobState
from edge_agent.jobs.pace import JobWork, Pace, Took
from edge_agent.jobs.queue import Envelope
from edge_agent.jobs.store import Store
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import Publication
from edge_agent.protocol.topics import Topics
from edge_agent.serving import outbox as outbox_module
from edge_agent.serving.outbox import (
    FIRST_RETRY_S,
    IN_FLIGHT_MAX,
    LAST_RETRY_S,
    NO_SUBSCRIBERS,
    STATES_IN_FLIGHT_MAX,
    Outbox,
)

PUBLISHED, QUOTA_EXCEEDED = 0x00, 0x97
NOT_AUTHORIZED = 0x87


class Sender:
    """An outbox with everything below it: a real store, a scripted link, time moved by hand."""

    def __init__(self, folder, *, keep_text="until_pruned"):
        self.machine = Time()
        self.link = FakeLink()
        self.queue = self.machine.queue(folder)
        self.store = Store(
            self.queue,
            keep_finished_s=86_400,
            keep_finished_jobs=1000,
        )
        self.store.on_changed.connect(lambda changes: self.outbox.announce(self.queue, changes))
        self.pace = Pace()
        self.load_s = 0.0
        self.outbox = Outbox(
            link=self.link,
            store=self.store,
            speech=Speech(Topics("edge/v1", "edge-01")),
            pace=self.pace,
            keep_text=keep_text,
            engines=SimpleNamespace(load_s=lambda _model: self.load_s),
            now_s=self.machine.now_s,
            chance=lambda: 1.0,
        )
        self.link.answered = self.outbox.answered

    def __enter__(self):
        self.store.start()
        self.outbox.start()
        return self

    def __exit__(self, *raised):
        self.outbox.stop()
        self.store.stop()

    def ask(self, act):
        return self.store.ask(act, timeout_s=PATIENCE_S)

    def accept(self, name):
        return self.ask(lambda queue: queue.accept(request(name), Envelope("line-3", 600.0), model="phi"))

    def finish(self, *names, client="line-3"):
        """Bring jobs from nothing to a result, in one transaction."""

        def act(queue):
            for name in names:
                queue.accept(request(name), Envelope(client, 600.0), model="phi")
                queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)

        self.ask(act)

    def finish_unsaid(self, jobs):
        """Bring jobs to a result while the connection is down, and forget what there is to say of their states."""
        self.link.connected = False
        self.finish(*(f"job-{number}" for number in range(jobs)))
        flush(self.store)
        wait_for(lambda: len(self.outbox._waiting) == 6 * jobs, "the states to be lined up", PATIENCE_S)
        while self.outbox._waiting:
            self.outbox._waiting.next()

    def ask_again(self, name):
        """Ask for a result as a requester does."""
        self.ask(lambda queue: self.outbox.answer(queue, queue.recall("line-3", name)))

    def results(self):
        """Return the jobs whose results were published, in order."""
        return [json.loads(each.payload)["job_id"] for each in self.link.of("result")]

    def wait_results(self, *names):
        self.link.wait_for(lambda: len(self.results()) >= len(names), f"the results of {names}")
        assert sorted(self.results()) == sorted(names)

    def answer(self, leaf, reason, *, index=-1):
        """Let the broker answer one of the messages of a kind."""
        mids = [mid for mid, each in enumerate(self.link.published, 1) if each.topic.endswith(f"/{leaf}") and each.qos]
        self.outbox.answered(mids[index], reason)

    def answer_all(self):
        """Let the broker take everything sent so far and from now on."""
        self.link.answer = PUBLISHED
        for mid, _ in enumerate(list(self.link.published), 1):
            self.outbox.answered(mid, PUBLISHED)

    @contextmanager
    def busy_store(self):
        """Keep the store from answering anybody for a while."""
        entered, left = threading.Event(), threading.Event()
        self.store.do(lambda _queue: (entered.set(), left.wait(PATIENCE_S)))
        assert entered.wait(PATIENCE_S)
        yield
        left.set()

    def pumped(self):
        """Wait until all that there is room for is with the broker, and what is owed was asked for."""
        self.outbox._inbox.put(outbox_module._nothing)
        wait_for(self.outbox._inbox.empty, "the outbox to come to the last of it", PATIENCE_S)
        flush(self.store)
        wait_for(lambda: not self.outbox._asking, "the store's answer", PATIENCE_S)
        self.outbox._inbox.put(outbox_module._nothing)
        wait_for(self.outbox._inbox.empty, "the outbox to publish it", PATIENCE_S)

    def settle(self):
        """Wait until the store, the outbox, and the store again have nothing more to do."""
        flush(self.store)
        assert self.outbox.settle(PATIENCE_S)
        flush(self.store)

    def owed(self):
        """Return the names of the results still owed, now or later."""

        def act(queue):
            self.machine.pass_s(LAST_RETRY_S)
            owed = {each.job.job_id for each in queue.results.owed(1000)}
            self.machine.pass_s(-LAST_RETRY_S)
            return owed

        return self.ask(act)


@pytest.fixture
def sender(tmp_path):
    with Sender(tmp_path) as started:
        yield started


def said(number, qos=1):
    return Publication(f"edge/v1/x/{number}/status", b"{}", qos=qos)


def text_of(sender, name):
    return sender.ask(lambda queue: queue.recall("line-3", name)).outcome.text


# Results


def test_a_result_is_owed_until_the_broker_answers(sender):
    sender.finish("a")
    sender.wait_results("a")
    assert sender.owed() == {"a"}
    sender.answer_all()
    sender.settle()
    assert sender.owed() == set()
    assert sender.results() == ["a"]


def test_nobody_listening_is_an_answer(sender):
    """0x10 ends it: the requester asks again when it is back."""
    sender.link.answer = NO_SUBSCRIBERS
    sender.finish("a")
    sender.wait_results("a")
    sender.settle()
    assert sender.owed() == set()


def test_a_refused_result_backs_off_and_blocks_no_other(sender):
    """Refused, it comes again after FIRST_RETRY_S; others go meanwhile."""
    sender.finish("a")
    sender.wait_results("a")
    sender.answer("result", NOT_AUTHORIZED)
    sender.link.answer = PUBLISHED
    sender.finish("b")
    sender.wait_results("a", "b")
    sender.answer_all()
    sender.settle()
    assert sender.owed() == {"a"}
    due_s = sender.ask(lambda queue: queue.results.next_owed_s())
    assert due_s == pytest.approx(sender.store.now_s() + FIRST_RETRY_S, abs=1)
    sender.machine.pass_s(FIRST_RETRY_S + 1)
    sender.outbox.wake()
    sender.wait_results("a", "b", "a")
    sender.settle()
    assert sender.owed() == set()


def test_results_wait_for_the_connection(sender):
    """Nothing is handed to paho while the connection is down; all goes when it is back."""
    sender.link.connected = False
    sender.finish("a", "b")
    sender.outbox.say(said(1))
    flush(sender.store)
    assert sender.link.of("result") == sender.link.of("status") == []
    sender.link.connected, sender.link.answer = True, PUBLISHED
    sender.outbox.wake()
    sender.wait_results("a", "b")
    sender.settle()


def test_what_was_not_delivered_is_sent_after_the_next_start(tmp_path):
    with Sender(tmp_path) as first:
        first.link.connected = False
        first.finish("a")
    with Sender(tmp_path) as second:
        second.wait_results("a")
        second.answer_all()  # also what was sent before anybody could say how it is answered
        second.settle()
        assert second.owed() == set()


def test_never_more_in_flight_than_paho_may_hold(sender):
    """Neither states nor results, nor both at once; and all arrive in the end, each once."""
    names = [f"job-{number}" for number in range(3 * IN_FLIGHT_MAX)]
    open_ids = set()
    most = 0
    publish = sender.link.publish

    def counting(publication):
        nonlocal most
        mid = publish(publication)
        if publication.qos:
            open_ids.add(mid)
            most = max(most, len(open_ids))
        return mid

    sender.link.publish = counting
    for number in range(IN_FLIGHT_MAX // 2):
        sender.outbox.say(said(number))
    sender.finish(*names)  # their states come with them, and take the room results were fetched for
    for _ in range(20 * len(names)):
        sender.link.wait_for(lambda: open_ids or len(sender.results()) == len(names), "something in flight")
        if not open_ids:
            break
        sender.outbox.answered(open_ids.pop(), PUBLISHED)
    sender.settle()
    assert sorted(sender.results()) == sorted(names)
    assert most <= IN_FLIGHT_MAX


def test_states_that_take_the_room_of_fetched_results_make_them_wait(sender):
    """Results are asked of the store while there is room; states that come before its answer take it."""
    sender.finish_unsaid(IN_FLIGHT_MAX)
    with sender.busy_store():
        sender.link.connected = True
        sender.outbox.wake()
        for number in range(IN_FLIGHT_MAX):
            sender.outbox.say(said(number))
        sender.link.wait_for(lambda: len(sender.link.published) == STATES_IN_FLIGHT_MAX, "all that states may take")
    sender.wait_results(*(f"job-{number}" for number in range(IN_FLIGHT_MAX - STATES_IN_FLIGHT_MAX)))
    flush(sender.store)
    wait_for(lambda: not sender.outbox._asking, "the store's answer", PATIENCE_S)
    assert len(sender.link.published) == IN_FLIGHT_MAX
    sender.answer_all()
    sender.settle()
    assert len(sender.results()) == IN_FLIGHT_MAX


def test_a_full_window_waits_without_asking(sender, monkeypatch):
    """With results due and no room for them, the thread sleeps until an answer comes."""
    sender.finish_unsaid(IN_FLIGHT_MAX)
    sender.link.connected = True
    sender.outbox.wake()
    sender.link.wait_for(lambda: len(sender.link.published) == IN_FLIGHT_MAX, "a full window")
    wait_for(lambda: not sender.outbox._asking, "the store's answer", PATIENCE_S)
    asked, do = [], sender.store.do
    monkeypatch.setattr(sender.store, "do", lambda act, then=None: (asked.append(act), do(act, then)))
    sender.finish("a")
    flush(sender.store)
    wait_for(sender.outbox._inbox.empty, "the outbox to hear of it", PATIENCE_S)
    assert sender.outbox._patience_s() > 10
    assert asked == []
    sender.answer_all()
    sender.settle()
    assert sender.results().count("a") == 1


def test_a_result_asked_for_again_while_in_flight_is_sent_again(sender):
    """The first answer may belong to a publication the requester did not hear."""
    sender.finish("a")
    sender.wait_results("a")
    sender.machine.pass_s(1)
    sender.ask_again("a")
    flush(sender.store)
    assert sender.results() == ["a"]
    sender.answer("result", PUBLISHED)
    sender.wait_results("a", "a")
    sender.answer_all()
    sender.settle()
    assert sender.owed() == set()


def test_an_answer_that_comes_while_the_store_is_asked_is_not_forgotten(sender):
    """Asked for again, answered, and the store just saying that nothing else is due: it is still sent again."""
    sender.finish("a")
    sender.wait_results("a")
    sender.machine.pass_s(1)
    sender.ask_again("a")
    flush(sender.store)
    wait_for(lambda: not sender.outbox._asking, "the store's answer", PATIENCE_S)
    with sender.busy_store():
        sender.outbox.wake()
        wait_for(lambda: sender.outbox._asking, "the store to be asked", PATIENCE_S)
        sender.answer("result", PUBLISHED)
        wait_for(lambda: sender.outbox._rows_in_flight() == frozenset(), "the answer to be heard", PATIENCE_S)
    sender.wait_results("a", "a")


# Text that is kept


@pytest.mark.parametrize(
    ("reason", "kept"), [(PUBLISHED, ""), (NO_SUBSCRIBERS, ANSWER.text), (QUOTA_EXCEEDED, ANSWER.text)]
)
def test_text_is_erased_when_somebody_has_it(tmp_path, reason, kept):
    """With `until_delivered`; not when nobody listened or the broker refused."""
    with Sender(tmp_path, keep_text="until_delivered") as sender:
        sender.link.answer = reason
        sender.finish("a")
        sender.wait_results("a")
        sender.settle()
        assert text_of(sender, "a") == kept


def test_text_asked_for_again_while_in_flight_is_not_erased(tmp_path):
    """Both publications carry the whole answer."""
    with Sender(tmp_path, keep_text="until_delivered") as sender:
        sender.finish("a")
        sender.wait_results("a")
        sender.machine.pass_s(1)
        sender.ask_again("a")
        sender.answer("result", PUBLISHED)
        sender.wait_results("a", "a")
        assert {json.loads(each.payload)["text"] for each in sender.link.of("result")} == {ANSWER.text}


def test_text_is_kept_until_pruned_if_so_told(sender):
    sender.link.answer = PUBLISHED
    sender.finish("a")
    sender.settle()
    assert text_of(sender, "a") == ANSWER.text


# States


def test_states_are_told_in_order_to_requester_and_monitors(sender):
    """Each change once to both; the requester's before its result."""
    sender.link.answer = PUBLISHED
    sender.accept("a")
    sender.ask(lambda queue: queue.claim("phi", idle=True))
    sender.ask(lambda queue: queue.end(queue.recall("line-3", "a"), JobState.SUCCEEDED, ANSWER))
    sender.wait_results("a")
    sender.settle()
    bodies = [(each.topic.split("/")[2], json.loads(each.payload)) for each in sender.link.of("status")]
    for audience in ("clients", "agents"):
        states = [(body["state"], body["state_seq"]) for to, body in bodies if to == audience]
        assert states == [("queued", 1), ("running", 2), ("succeeded", 3)]
    leaves = [each.topic.rsplit("/", 1)[1] for each in sender.link.published if each.qos]
    assert leaves == ["status", "status", "status", "result"]


def test_a_waiting_job_is_told_its_place_and_when_it_may_be_done(sender):
    """From the pace of the jobs before it and the load of its model; without any measured only its place."""
    sender.link.answer = PUBLISHED
    sender.accept("a")
    flush(sender.store)
    took = Took(JobWork(50, 256), completion_tokens=256, prompt_s=0.0, generate_s=4.0, busy_s=4.0, beside=1)
    sender.pace.note("phi", took, lanes=1)
    sender.accept("b")
    sender.settle()
    sender.load_s = 30.0
    sender.accept("c")
    sender.settle()
    told = [json.loads(each.payload) for each in sender.link.of("status") if "/clients/" in each.topic]
    assert [(each["queue_position"], each.get("eta_s")) for each in told] == [(1, None), (2, 8.0), (3, 42.0)]


def test_states_beyond_the_bound_drop_the_oldest(sender, monkeypatch):
    monkeypatch.setattr(outbox_module, "WAITING_MAX", 3)
    sender.link.connected = False
    for number in range(5):
        sender.outbox.say(said(number))
    wait_for(lambda: sender.outbox.dropped == 2, "two to be dropped", PATIENCE_S)
    sender.link.connected, sender.link.answer = True, PUBLISHED
    sender.outbox.wake()
    sender.settle()
    assert [each.topic.split("/")[3] for each in sender.link.published] == ["2", "3", "4"]


def refusal(client, number):
    return Publication(f"edge/v1/clients/{client}/inbox/edge-01/job-{number}/status", b"{}", qos=1)


def test_who_has_thousands_of_refusals_to_hear_delays_nobody_else(sender):
    """Requesters take turns, and results go out beside states: a state, and the result behind it, wait for few."""
    flood = 40 * IN_FLIGHT_MAX
    sender.link.connected = False
    for number in range(flood):
        sender.outbox.say(refusal("mallory", number))
    sender.finish("a")
    flush(sender.store)
    wait_for(lambda: len(sender.outbox._waiting) == flood + 6, "all to be lined up", PATIENCE_S)
    sender.link.connected = True
    sender.outbox.wake()
    for mid in range(1, 3 * IN_FLIGHT_MAX):  # answered one by one; those without an id here are of QoS 0
        sender.pumped()
        if sender.results():
            break
        sender.outbox.answered(mid, PUBLISHED)
    mine = [each.topic.rsplit("/", 1)[1] for each in sender.link.published if "/line-3/" in each.topic]
    assert mine == ["status", "status", "status", "result"]
    sender.answer_all()
    sender.settle()
    assert len([each for each in sender.link.published if "/mallory/" in each.topic]) == flood


def test_no_result_goes_before_the_states_of_its_job(sender, monkeypatch):
    """They are hurried on, and the result waits until the broker has answered something, asking nobody meanwhile."""
    sender.link.connected = False
    for number in range(2 * IN_FLIGHT_MAX):
        sender.outbox.say(refusal("line-3", number))
    sender.finish("a")
    flush(sender.store)
    wait_for(lambda: len(sender.outbox._waiting) == 2 * IN_FLIGHT_MAX + 6, "all to be lined up", PATIENCE_S)
    sender.link.connected = True
    sender.outbox.wake()
    sender.pumped()
    assert sender.results() == []
    asked, do = [], sender.store.do
    with monkeypatch.context() as watched:
        watched.setattr(sender.store, "do", lambda act, then=None: (asked.append(then), do(act, then)))
        sender.pumped()
        assert [each for each in asked if each] == []
    for mid in range(1, IN_FLIGHT_MAX):
        sender.outbox.answered(mid, PUBLISHED)
        sender.pumped()
        if sender.results():
            break
    mine = [each.topic.rsplit("/", 1)[1] for each in sender.link.published if "/inbox/edge-01/a/" in each.topic]
    assert mine == ["status", "status", "status", "result"]


def test_results_owed_to_many_go_out_client_by_client(sender):
    """As after a reconnect: those of who is owed hundreds before, and since longer, keep nobody else's back."""
    sender.link.connected = False
    sender.finish(*(f"many-{number}" for number in range(10 * IN_FLIGHT_MAX)), client="mallory")
    sender.machine.pass_s(1)
    for client in ("line-3", "line-4"):
        sender.finish(f"{client}-1", f"{client}-2", client=client)
    flush(sender.store)
    wait_for(lambda: len(sender.outbox._waiting) == 6 * (10 * IN_FLIGHT_MAX + 4), "the states", PATIENCE_S)
    while sender.outbox._waiting:
        sender.outbox._waiting.next()
    sender.link.connected = True
    sender.outbox.wake()
    sender.pumped()
    heard = [each.split("-")[0] for each in sender.results()]
    assert len(heard) == IN_FLIGHT_MAX
    assert heard[:6].count("many") == 2
    sender.answer_all()
    sender.settle()
    assert len(set(sender.results())) == 10 * IN_FLIGHT_MAX + 4


def test_too_many_states_drop_those_of_who_has_most(sender, monkeypatch):
    monkeypatch.setattr(outbox_module, "WAITING_MAX", 10)
    sender.link.connected = False
    sender.outbox.say(refusal("line-3", 0))
    for number in range(50):
        sender.outbox.say(refusal("mallory", number))
    wait_for(lambda: sender.outbox.dropped == 41, "all but ten to be dropped", PATIENCE_S)
    sender.link.connected, sender.link.answer = True, PUBLISHED
    sender.outbox.wake()
    sender.settle()
    heard = [(each.topic.split("/")[3], int(each.topic.split("-")[-1].split("/")[0])) for each in sender.link.published]
    assert heard == [("line-3", 0), *(("mallory", number) for number in range(41, 50))]


def test_settling_waits_for_the_last_answer_and_gives_up_in_time(sender):
    sender.outbox.say(said(1))
    assert not sender.outbox.settle(0.05)
    sender.answer_all()
    assert sender.outbox.settle(PATIENCE_S)


# Text as it comes


def chunks(sender):
    return [json.loads(each.payload)["text"] for each in sender.link.of("chunk")]


@pytest.fixture
def stream(sender):
    sender.accept("a")
    return sender.outbox.open(sender.ask(lambda queue: queue.claim("phi", idle=True)))


def test_text_that_waits_is_sent_at_its_time(sender, stream):
    sender.outbox.write(stream, "The", 1)
    sender.outbox.write(stream, " pump", 1)
    assert chunks(sender) == ["The"]
    sender.machine.pass_s(0.05)
    sender.outbox.wake()
    sender.link.wait_for(lambda: len(chunks(sender)) == 2, "the second chunk")
    assert chunks(sender) == ["The", " pump"]


def test_the_soonest_stream_sets_the_timer(sender, stream):
    """A stream due before those that wait already wakes the thread; one due later does not."""
    sender.accept("b")
    other = sender.outbox.open(sender.ask(lambda queue: queue.claim("phi", idle=True)))
    flush(sender.store)
    sender.outbox.stop()  # so that its notes can be counted
    notes = sender.outbox._inbox.qsize()
    sender.outbox.write(stream, "The", 1)
    sender.machine.pass_s(0.03)
    for each, due_in_s, woken in ((other, 0.05, 1), (stream, 0.02, 2), (other, 0.02, 2)):
        sender.outbox.write(each, "A", 1)
        sender.outbox.write(each, " valve", 1)
        assert sender.outbox._patience_s() == pytest.approx(due_in_s)
        assert sender.outbox._inbox.qsize() == notes + woken


def test_closing_sends_the_rest(sender, stream):
    """And returns the number of the last chunk; nothing comes later."""
    sender.outbox.write(stream, "The", 1)
    sender.outbox.write(stream, " pump", 1)
    assert sender.outbox.close(stream) == 1
    assert chunks(sender) == ["The", " pump"]
    sender.machine.pass_s(1)
    sender.link.answer = PUBLISHED
    sender.answer_all()
    sender.settle()
    assert len(chunks(sender)) == 2


def watched(sender, *, qos=1, retain=False, form="json"):
    """Bring a watch's job from nothing to its end; return the row."""
    destination = Destination(topic="answers/door", qos=qos, retain=retain, format=form)
    envelope = Envelope("watch:door", 600.0, source="sensors/door", answer=destination)

    def act(queue):
        queue.accept(request("w-1"), envelope, model="phi")
        return queue.end(queue.claim("phi", idle=True), JobState.SUCCEEDED, ANSWER)

    return sender.ask(act)


def test_a_watchs_answer_goes_where_its_rule_says_and_the_row_goes_with_it(tmp_path):
    """No inbox hears of it; monitors do. Once the broker took it, the job is forgotten."""
    with Sender(tmp_path, keep_text="until_delivered") as sender:
        watched(sender, retain=True)
        sender.link.wait_for(lambda: sender.link.of("door"), "the answer")
        (answer,) = sender.link.of("door")
        body = json.loads(answer.payload)
        assert (answer.topic, answer.qos, answer.retain, answer.expiry_s) == ("answers/door", 1, True, None)
        assert answer.user == {"edge-agent-hops": "1"}
        assert (body["watch"], body["topic"], body["text"]) == ("door", "sensors/door", ANSWER.text)
        assert "error" not in body
        assert [each.topic for each in sender.link.published if "/clients/" in each.topic] == []
        assert len([each for each in sender.link.published if "/evt/jobs/w-1/" in each.topic]) == 3
        assert counts(sender.queue) == {"succeeded": 1}
        sender.answer_all()
        sender.settle()
        assert counts(sender.queue) == {}


def test_a_watchs_answer_the_broker_refuses_is_tried_again(tmp_path):
    with Sender(tmp_path) as sender:
        watched(sender, form="text")
        sender.link.wait_for(lambda: sender.link.of("door"), "the answer")
        sender.answer("door", NOT_AUTHORIZED)
        sender.settle()
        sender.machine.pass_s(FIRST_RETRY_S + 1)
        sender.outbox.wake()
        sender.link.wait_for(lambda: len(sender.link.of("door")) == 2, "the answer again")
        assert {each.payload for each in sender.link.of("door")} == {ANSWER.text.encode()}


def test_an_answer_of_qos_0_is_said_once_and_forgotten(tmp_path):
    with Sender(tmp_path) as sender:
        watched(sender, qos=0, form="text")
        sender.link.wait_for(lambda: sender.link.of("door"), "the answer")
        sender.settle()
        assert counts(sender.queue) == {}
        assert len(sender.link.of("door")) == 1


def test_an_answer_is_cut_to_what_the_broker_takes(tmp_path):
    long = ANSWER.model_copy(update={"text": "ä" * 5000})
    with Sender(tmp_path) as sender:
        for form in ("text", "json"):
            job = replace(watched(sender, form=form), outcome=long)
            said = Speech(Topics("edge/v1", "edge-01")).result(job, packet_bytes_max=2048)
            assert len(said.payload) <= 2048
            text = said.payload.decode() if form == "text" else json.loads(said.payload)["text"]
            assert set(text) == {"ä"}
            sender.answer_all()
            sender.settle()
