"""The control socket: what an operator may do, and what rubbish, silence and strangers cost."""

import contextlib
import json
import os
import resource
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes import PATIENCE_S, FullDisk, flush
from hypothesis import given
from hypothesis import strategies as st
from running import limited, wait_for

from edge_agent.base import small_server
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.control import caller as caller_module
from edge_agent.control import server as server_module
from edge_agent.control.caller import ask_agent, ask_queue, reach
from edge_agent.control.job_admin import JobAdmin
from edge_agent.control.messages import (
    ASK_BYTES_MAX,
    AskState,
    CancelJob,
    ListJobs,
    PruneJobs,
    RetryJob,
    ShowJob,
    Standing,
    decode_ask,
)
from edge_agent.control.server import CONNECTIONS_MAX, NAME, ControlServer, allowed, beside
from edge_agent.jobs import database as database_module
from edge_agent.jobs.ids import watch_client
from edge_agent.jobs.job import Destination, JobState, Outcome
from edge_agent.jobs.queue import Envelope, Queue
from edge_agent.jobs.request import Request
from edge_agent.jobs.state_dir import locked
from edge_agent.jobs.store import Store
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.order_payloads import ModelOrder, OrderResult, OrderStatus
from edge_agent.protocol.topics import Topics

STATE = Standing(agent="edge-01", version="1", pid=1, boot_id="b", health="ready", connected=True)


def desk(canceled=None, new_id=lambda: "again-1"):
    made = JobAdmin(speech=Speech(Topics("edge/v1", "edge-01")), resolve=lambda model: model, new_id=new_id)
    if canceled is not None:
        made.on_cancel.connect(canceled.append)
    return made


def accept(queue, job_id="job-1", client="line-3", **fields):
    request = Request.model_validate_json(json.dumps({"job_id": job_id, "prompt": "a secret"} | fields))
    return queue.accept(request, Envelope(client, 600.0), model="tiny")


def end(queue, job, state=JobState.SUCCEEDED, text="an answer", *, delivered=True):
    running = queue.claim("tiny", idle=True)
    assert running.job_id == job.job_id
    ended = queue.end(running, state, Outcome(text=text))
    if delivered:
        for owed in queue.results.owed(10):
            queue.results.delivered(owed)
    return ended


def take(order):
    """As an agent that serves tiny."""
    if order.model != "tiny":
        raise EdgeAgentError(Code.UNKNOWN_MODEL, "model: this agent serves tiny")
    kind = OrderResult if order.op == "unpin" else OrderStatus
    state = "succeeded" if order.op == "unpin" else "running"
    return kind(agent="edge-01", op_id=order.op_id, op=order.op, model=order.model, state=state)


class Running:
    """A store and a control socket on it, as in a running agent."""

    def __init__(self, folder):
        self.folder, self.canceled = folder, []
        self.queue = Queue(folder / "queue.db")
        self.store = Store(self.queue, keep_finished_s=1e6, keep_finished_jobs=10**6)
        self.server = ControlServer(folder, store=self.store, desk=desk(self.canceled), order=take)

    def __enter__(self):
        self.store.start()
        self.server.start(lambda: STATE)
        return self

    def __exit__(self, *raised):
        self.server.stop()
        self.store.stop()

    def do(self, act):
        return self.store.ask(act, timeout_s=PATIENCE_S)

    def ask(self, ask):
        return ask_agent(self.folder, ask)


@pytest.fixture
def running(tmp_path):
    with Running(tmp_path) as agent:
        yield agent


def connect(folder):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    with beside(folder) as address:
        sock.connect(address)
    return sock


def everything(sock):
    with sock:
        return b"".join(iter(lambda: sock.recv(65_536), b""))


# What an operator may do


def test_jobs_are_listed_newest_first_without_their_text(running):
    running.do(lambda queue: [end(queue, accept(queue, "a")), accept(queue, "b", priority=9), accept(queue, "c")])
    reply = running.ask(ListJobs(limit=2))
    assert [(line.job_id, line.client, line.state) for line in reply.jobs] == [
        ("c", "line-3", "queued"),
        ("b", "line-3", "queued"),
    ]
    assert reply.more is True
    reply = running.ask(ListJobs(states=(JobState.SUCCEEDED,)))
    assert [line.job_id for line in reply.jobs] == ["a"]
    assert not reply.more
    assert running.ask(ListJobs(client="nobody")).jobs == ()
    (brief,) = running.do(lambda queue: queue.overview.newest(states=(JobState.SUCCEEDED,), client=None, limit=9))
    assert brief.request is None  # not even read: a list of a thousand jobs is small
    assert "answer" not in brief.outcome
    assert "secret" not in reply.model_dump_json()
    assert "answer" not in reply.model_dump_json()


def test_text_is_shown_only_when_it_is_asked_for(running):
    running.do(lambda queue: end(queue, accept(queue, metadata={"who": "secret"}, max_tokens=7)))
    shown = running.ask(ShowJob(job_id="job-1"))
    assert "secret" not in shown.model_dump_json()
    assert "an answer" not in shown.model_dump_json()
    assert shown.request["max_tokens"] == 7
    assert shown.result.state == "succeeded"
    told = running.ask(ShowJob(job_id="job-1", text=True))
    assert told.request["prompt"] == "a secret"
    assert told.result.text == "an answer"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("ask", [ListJobs(), ShowJob(job_id="job-1", text=True), RetryJob(job_id="job-1")])
def test_a_watchs_job_is_shown_as_any_other_whatever_its_answer_looks_like(running, form, ask):
    """While the broker is away its answer waits, and the operator looks."""
    answer = Destination(topic="answers/door", qos=1, retain=False, format=form)

    def run(queue):
        request = Request(job_id="job-1", prompt="Is the door open?")
        watched = Envelope(watch_client("door"), 600.0, source="door/state", answer=answer)
        end(queue, queue.accept(request, watched, model="tiny"), delivered=False)

    running.do(run)
    reply = running.ask(ask)
    assert reply.error is None
    assert reply.result is None or (reply.result.state, reply.result.text) == ("succeeded", "an answer")


def test_a_job_id_of_several_clients_wants_the_client_too(running):
    running.do(lambda queue: [accept(queue, client="line-3"), accept(queue, client="line-4")])
    refused = running.ask(CancelJob(job_id="job-1")).error
    assert (refused.code, "line-3, line-4" in refused.message) == (Code.BAD_REQUEST, True)
    assert running.ask(CancelJob(job_id="job-1", client="line-4")).jobs[0].state == "canceled"
    assert running.ask(ShowJob(job_id="job-1", client="line-3")).jobs[0].state == "queued"
    assert running.ask(ShowJob(job_id="job-2")).error.code == Code.UNKNOWN_JOB


def test_a_cancel_ends_what_waits_stops_what_runs_and_leaves_what_has_ended(running):
    running.do(accept)
    running.do(lambda queue: queue.claim("tiny", idle=True))
    assert "told to stop" in running.ask(CancelJob(job_id="job-1")).said
    assert [job.job_id for job in running.canceled] == ["job-1"]
    running.do(lambda queue: queue.end(queue.overview.named("job-1")[0], JobState.CANCELED, Outcome()))
    owed = running.do(lambda queue: queue.results.owed(10))
    running.do(lambda queue: [queue.results.delivered(each) for each in owed])
    assert "had ended already: canceled" in running.ask(CancelJob(job_id="job-1")).said
    assert running.do(lambda queue: queue.results.owed(10)) == []  # its requester is not told twice


def test_a_retry_is_a_new_job_and_the_first_keeps_its_one_result(running):
    """Exactly one result for each agent, client and job id is what the protocol promises."""
    first = running.do(lambda queue: end(queue, accept(queue, metadata={"n": 1}), JobState.FAILED))
    reply = running.ask(RetryJob(job_id="job-1"))
    assert reply.jobs[0].job_id == "again-1"
    (again,) = running.do(lambda queue: queue.overview.named("again-1"))
    assert (again.client, again.state) == ("line-3", JobState.QUEUED)
    assert again.metadata == {"n": 1, "retry_of": "job-1"}
    assert again.asked.prompt == "a secret"
    assert running.do(lambda queue: queue.overview.named("job-1")) == [first]


@pytest.mark.parametrize("state", ["queued", "erased"])
def test_what_cannot_run_again_is_said(running, state):
    def prepare(queue):
        job = accept(queue)
        if state == "erased":
            queue.results.erase(end(queue, job))

    running.do(prepare)
    assert running.ask(RetryJob(job_id="job-1")).error.code in (Code.BAD_REQUEST, Code.UNSUPPORTED)
    assert len(running.ask(ListJobs()).jobs) == 1


def test_prune_forgets_what_ended_but_not_what_is_still_owed(running):
    running.do(lambda queue: end(queue, accept(queue, "a")))
    running.do(lambda queue: [end(queue, accept(queue, "b"), delivered=False), accept(queue, "c")])
    assert running.ask(PruneJobs(older_s=3600)).pruned == 0
    assert running.ask(PruneJobs(older_s=0)).pruned == 1
    assert [line.job_id for line in running.ask(ListJobs()).jobs] == ["c", "b"]


def test_the_agents_state_is_told(running):
    assert running.ask(AskState()).state == STATE


def test_orders_are_given_and_asked_after(running):
    """By the same question: the reply says how far it is, what became of it, or why it is refused."""
    order = {"op_id": "1", "op": "load", "model": "tiny"}
    assert running.ask(ModelOrder(**order)).order.state == "running"
    assert isinstance(running.ask(ModelOrder(**order | {"op": "unpin"})).order, OrderResult)
    assert running.ask(ModelOrder(**order | {"model": "other"})).error.code == Code.UNKNOWN_MODEL


def test_a_full_disk_is_told(running, monkeypatch):
    monkeypatch.setattr(server_module, "STORE_S", 0.1)
    disk = FullDisk(running.queue, monkeypatch)
    disk.full = True
    assert running.ask(CancelJob(job_id="job-1")).error.code == Code.STORAGE_FULL
    disk.full = False
    flush(running.store)


def test_who_waits_for_the_disk_keeps_nobody_else_waiting(running, monkeypatch):
    """How the agent is can be asked meanwhile: it is not frozen. Who waited is answered when the disk goes on."""
    disk = FullDisk(running.queue, monkeypatch)
    disk.full = True
    answers = []
    askers = [threading.Thread(target=lambda: answers.append(running.ask(ListJobs()))) for _ in range(3)]
    for asker in askers:
        asker.start()
    wait_for(lambda: len(running.server._server._ends_s) == len(askers) and running.store.trouble, "them to wait")
    assert running.ask(AskState()).state == STATE
    assert answers == []
    disk.full = False
    for asker in askers:
        asker.join(PATIENCE_S)
    assert [answer.error for answer in answers] == [None] * len(askers)


# While the agent is down


def test_without_an_agent_the_queue_itself_is_asked(tmp_path):
    with Queue(tmp_path / "queue.db") as queue, queue.transaction():
        accept(queue)
    asking = reach(tmp_path, desk=desk(), age_step_s=60.0)
    assert asking(CancelJob(job_id="job-1")).jobs[0].state == "canceled"
    assert asking(RetryJob(job_id="job-1")).jobs[0].job_id == "again-1"
    assert [line.job_id for line in asking(ListJobs()).jobs] == ["again-1", "job-1"]
    with pytest.raises(EdgeAgentError, match="no agent runs"):
        asking(AskState())


def test_what_is_pruned_without_an_agent_is_gone_from_the_files_and_gives_room(tmp_path):
    file = tmp_path / "queue.db"
    with Queue(file) as queue, queue.transaction():
        for number in range(100):
            asked = Request(job_id=f"j-{number}", prompt="SECRET" * 20_000)
            queue.cancel("line-3", f"j-{number}")
            queue.accept(asked, Envelope("line-3", 60.0), model="phi")
        for owed in queue.results.owed(1000):
            queue.results.delivered(owed)
    before = file.stat().st_size
    assert reach(tmp_path, desk=desk(), age_step_s=60.0)(PruneJobs(older_s=0)).pruned == 100
    assert file.stat().st_size < before / 2
    assert b"SECRET" not in file.read_bytes()


def test_another_programs_lock_on_the_queue_is_waited_for_and_said(tmp_path, monkeypatch):
    """A backup that holds the lock costs a moment, and a sentence; one that never ends, the command."""
    monkeypatch.setattr(database_module, "BUSY_S", 0.01)
    with Queue(tmp_path / "queue.db") as queue, queue.transaction():
        accept(queue)
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = []

        def say(sentence):
            said.append(sentence)
            other.execute("COMMIT")

        asking = reach(tmp_path, desk=desk(), age_step_s=60.0, say=say)
        assert asking(CancelJob(job_id="job-1")).jobs[0].state == "canceled"
        assert said == ["waits: another program holds the lock of the queue"]
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(caller_module, "LOCK_S", 0.1)
        with pytest.raises(EdgeAgentError, match="come to its end"):
            ask_queue(tmp_path, ListJobs(), desk=desk(), age_step_s=60.0)


def test_a_queue_an_agent_has_is_left_alone(tmp_path):
    """An agent that does not answer on its socket, an old one for instance, still has its queue for itself."""
    Queue(tmp_path / "queue.db").close()
    with locked(tmp_path), pytest.raises(EdgeAgentError, match="in use by another agent"):
        ask_queue(tmp_path, ListJobs(), desk=desk(), age_step_s=60.0)


def test_a_folder_without_a_queue_gets_none(tmp_path):
    with pytest.raises(EdgeAgentError, match="holds no queue"):
        ask_queue(tmp_path / "typo", ListJobs(), desk=desk(), age_step_s=60.0)
    assert not (tmp_path / "typo").exists()


def test_the_wish_to_cancel_a_job_that_ran_when_the_agent_died_is_kept(tmp_path):
    with Queue(tmp_path / "queue.db") as queue, queue.transaction():
        accept(queue)
        queue.claim("tiny", idle=True)
    reach(tmp_path, desk=desk(), age_step_s=60.0)(CancelJob(job_id="job-1"))
    with Queue(tmp_path / "queue.db") as queue, queue.transaction():
        queue.recover()
        assert queue.overview.named("job-1")[0].state is JobState.CANCELED


# Who may ask, and what others cost


def test_the_socket_is_its_owners_alone(running):
    found = (running.folder / NAME).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (allowed(0, own_uid=1000), allowed(1000, own_uid=1000), allowed(1001, own_uid=1000)) == (True, True, False)


STRANGER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    os.setgid(65534)
    os.setuid(65534)
    try:
        sock.connect(f"/proc/self/fd/{sys.argv[1]}/{sys.argv[2]}")
        sock.sendall(b'{"op":"state"}\\n')
        print(sock.recv(100))
    except (BrokenPipeError, ConnectionResetError):
        print(b"")
"""


def test_another_user_is_hung_up_on_unheard(running):
    """With folder and socket open to everybody, it is still told nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    running.folder.chmod(0o755)
    (running.folder / NAME).chmod(0o666)
    folder = os.open(running.folder, os.O_PATH | os.O_DIRECTORY)
    command = [sys.executable, "-c", STRANGER, str(folder), NAME]
    done = subprocess.run(command, pass_fds=[folder], capture_output=True, text=True, timeout=60, check=False)
    os.close(folder)
    assert (done.stdout, done.returncode) == ("b''\n", 0), done.stderr
    assert running.ask(AskState()).state == STATE


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\n",
        b"{}\n",
        b"\xff\xfe\x00\n",
        b'{"op":"list","limit":1000000}\n',
        b'{"op":"show","job_id":"../../x"}\n',
        b'{"op":"drop"}\n',
        b'{"op":"list","extra":1}\n',
        b"[" * 4000 + b"\n",
        b"x" * (ASK_BYTES_MAX + 1),
    ],
)
def test_rubbish_is_answered_and_costs_nothing(running, rubbish):
    sock = connect(running.folder)
    sock.sendall(rubbish)
    reply = json.loads(everything(sock))
    too_large = len(rubbish) > ASK_BYTES_MAX
    assert reply["error"]["code"] == ("payload_too_large" if too_large else "bad_request")
    assert running.ask(AskState()).state == STATE


@given(st.binary(max_size=200))
def test_bytes_are_a_question_or_a_refusal(line):
    """Nothing else is raised."""
    with contextlib.suppress(EdgeAgentError):
        decode_ask(line)


def test_who_is_silent_or_does_not_read_loses_their_place(running):
    """All places taken by silent callers: the next is heard, the oldest gives way, and the others have their time."""
    silent = [connect(running.folder) for _ in range(CONNECTIONS_MAX)]
    silent[0].sendall(b'{"op":')
    wait_for(lambda: len(running.server._server._ends_s) == CONNECTIONS_MAX, "the silent to be let in", PATIENCE_S)
    assert running.ask(AskState()).state == STATE
    assert everything(silent[0]) == b""
    running.server._server.cut(float("inf"))  # as when their time is over
    for sock in silent[1:]:
        assert everything(sock) == b""


def test_who_waits_for_an_answer_does_not_give_way_to_the_silent(running, monkeypatch):
    disk = FullDisk(running.queue, monkeypatch)
    disk.full = True
    waiting = connect(running.folder)
    waiting.sendall(b'{"op":"list"}\n')
    wait_for(lambda: running.store.trouble, "it to wait for the disk", PATIENCE_S)
    silent = [connect(running.folder) for _ in range(2 * CONNECTIONS_MAX)]
    assert everything(silent[0]) == b""
    disk.full = False
    assert json.loads(everything(waiting))["jobs"] == []
    for sock in silent[1:]:
        sock.close()


def test_who_cannot_be_let_in_for_want_of_descriptors_is_not_tried_without_end(running, monkeypatch):
    """Once in a while; as soon as there is one they are heard."""
    server = running.server._server
    tries, get_request = [], server.get_request
    monkeypatch.setattr(server, "get_request", lambda: (tries.append(1), get_request())[1])
    waits, wait = [], running.server._stopping.wait
    monkeypatch.setattr(running.server._stopping, "wait", lambda _pause_s: (waits.append(1), wait(0.1))[1])
    asked = socket.socket(socket.AF_UNIX)
    with beside(running.folder) as address, limited(resource.RLIMIT_NOFILE, 3):
        asked.connect(address)
        asked.sendall(b'{"op":"state"}\n')
        wait_for(lambda: len(tries) > 3, "somebody who cannot be let in", PATIENCE_S)
        assert len(waits) >= len(tries) - 1
    assert json.loads(everything(asked))["state"]["health"] == "ready"


def test_an_answer_nobody_reads_holds_nobody_up(running):
    running.do(lambda queue: [accept(queue, f"job-{n}", metadata={"x": "y" * 3000}) for n in range(1000)])
    lazy = connect(running.folder)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    lazy.sendall(b'{"op":"list","limit":1000}\n')
    assert len(running.ask(ListJobs(limit=1000)).jobs) == 1000
    assert len(json.loads(everything(lazy))["jobs"]) == 1000


def test_callers_that_vanish_leave_nothing(running):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for rudely in (False, True) * 20:
        sock = connect(running.folder)
        sock.sendall(b'{"op":"list"}\n')
        if rudely:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert running.ask(AskState()).state == STATE
    wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before, "descriptors to be closed", PATIENCE_S)
    assert threading.active_count() < 50


def test_a_socket_left_by_a_dead_agent_is_replaced_and_a_stopped_one_leaves_none(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead, beside(tmp_path) as address:
        dead.bind(address)
    assert ask_agent(tmp_path, AskState()) is None
    with Running(tmp_path) as agent:
        assert agent.ask(AskState()).state == STATE
        assert stat.S_ISSOCK((tmp_path / NAME).stat().st_mode)
    assert not (tmp_path / NAME).exists()


def test_a_socket_that_somebody_removed_is_made_anew(tmp_path, monkeypatch):
    """As often as it takes, with its mode, and while the folder takes none the agent lives on."""
    monkeypatch.setattr(small_server, "IDLE_S", 0.02)
    with Running(tmp_path) as agent:
        for _ in range(2):
            (tmp_path / NAME).unlink()
            wait_for(lambda: agent.ask(AskState()), "the agent to listen anew", PATIENCE_S)
            assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
        tries = []
        monkeypatch.setattr(server_module, "beside", lambda folder: (tries.append(folder), beside(folder))[1])
        moved = tmp_path.rename(tmp_path.with_name("moved"))
        wait_for(lambda: len(tries) > 1, "the agent to try", PATIENCE_S)
        moved.rename(tmp_path)
        assert agent.ask(AskState()).state == STATE
    assert not (tmp_path / NAME).exists()


def test_a_folder_that_takes_no_socket_keeps_no_agent_from_its_jobs(tmp_path, monkeypatch):
    """FAT, for one, has none; the agent says so and works."""

    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(server_module.os, "chmod", refuse)
    with Running(tmp_path) as agent:
        assert agent.do(lambda queue: queue.backlog.jobs) == 0
        assert ask_agent(tmp_path, AskState()) is None


def test_a_long_folder_name_is_no_hindrance(tmp_path):
    folder = tmp_path / ("long-" * 40)
    folder.mkdir()
    with Running(folder) as agent:
        assert agent.ask(AskState()).state == STATE


def test_a_state_folder_that_is_none_is_said(tmp_path):
    """A file in its place, and a name that no file system takes."""
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "Not a directory"), (tmp_path / ("x" * 300), "File name too long")):
        with pytest.raises(EdgeAgentError, match=f"{reason}; .*--state-dir"):
            ask_agent(folder, AskState())
