"""The engine child as it is: its own process, a real socket pair, a real model."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from running import PATIENCE_S, wait_for

from edge_agent.base.errors import Code
from edge_agent.engine.messages import (
    Cancel,
    Close,
    Failed,
    Finished,
    FinishReason,
    FrameReader,
    Generation,
    JobId,
    Load,
    LoadFailed,
    ModelLimits,
    Progress,
    Ready,
    Start,
    Text,
    Turn,
    decode,
    encode,
)

pytestmark = pytest.mark.engine

HELLO = (Turn("user", "is the pump on?"),)
DEAD = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}

# A parent that starts a child on an inherited socket, says its id, and lives until it is killed.
PARENT = """
import os, subprocess, sys
fd = int(sys.argv[1])
child = subprocess.Popen(
    [sys.executable, "-m", "edge_agent.engine.child", "--fd", str(fd), "--parent", str(os.getpid())], pass_fds=(fd,)
)
os.close(fd)
print(child.pid, flush=True)
child.wait()
"""


class Wire:
    """The parent's end of the socket."""

    def __init__(self, end):
        self._end = end
        self._end.settimeout(PATIENCE_S)
        self._frames = FrameReader()
        self._heard = []

    def send(self, message):
        self._end.sendall(encode(message))

    def hear(self):
        """Return the next message; None when the child has closed its end."""
        while not self._heard:
            chunk = self._end.recv(65_536)
            if not chunk:
                return None
            self._heard += map(decode, self._frames.feed(chunk))
        return self._heard.pop(0)

    def until(self, kind):
        """Return the messages up to the first of a kind."""
        messages = [self.hear()]
        while not isinstance(messages[-1], kind):
            assert messages[-1] is not None, f"the child closed its end before {kind}"
            messages.append(self.hear())
        return messages

    def hang_up(self):
        self._end.close()


class Child:
    """A child of this process and the wire to it."""

    def __init__(self, *, environment=None, parent=None, stderr=None):
        ours, theirs = socket.socketpair()
        self.wire = Wire(ours)
        with theirs:
            fd = str(theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge_agent.engine.child", "--fd", fd, "--parent", str(parent or os.getpid())],
                pass_fds=(theirs.fileno(),),
                env=os.environ | (environment or {}),
                stderr=stderr,
            )

    def load(self, folder, *, context_tokens=8192, parallel=2):
        """Tell it what to load; return its answer."""
        self.wire.send(Load(str(folder), "onnx", context_tokens, parallel, 1))
        return self.wire.hear()

    def status(self):
        return self.process.wait(PATIENCE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.process.kill()
        self.process.wait()
        self.wire.hang_up()


@pytest.fixture
def child(tiny_model):
    """A child that is ready."""
    with Child() as running:
        assert isinstance(running.load(tiny_model), Ready)
        yield running


def ask(number, turns=HELLO, max_tokens=8, **options):
    return Start(Generation(JobId(f"{number}.1"), turns, max_tokens, **options))


def test_it_loads_answers_and_closes(tiny_model):
    """Load, ready, a text in pieces, its end, and a clean exit."""
    with Child() as child:
        ready = child.load(tiny_model, context_tokens=500)
        assert ready.limits == ModelLimits(500, 2)
        assert ready.load_ms > 0
        assert ready.library.startswith("onnxruntime-genai ")
        child.wire.send(ask(1))
        *events, end = child.wire.until(Finished)
        assert isinstance(events[0], Progress)
        assert sum(event.tokens for event in events if isinstance(event, Text)) == 8
        assert "".join(event.text for event in events if isinstance(event, Text))
        assert end.reason is FinishReason.LENGTH
        child.wire.send(Close())
        assert child.wire.hear() is None
        assert child.status() == 0


def test_jobs_run_side_by_side_and_a_cancel_is_heard(child):
    """A long job is stopped in the middle of its text; its neighbour is not."""
    child.wire.send(ask(1, max_tokens=7000))
    child.wire.until(Text)
    child.wire.send(ask(2, max_tokens=40))
    child.wire.send(Cancel(JobId("1.1")))
    ends = {}
    while len(ends) < 2:
        *_, end = child.wire.until(Finished)
        ends[end.job_id] = end
    assert ends["1.1"].reason is FinishReason.CANCELED
    assert 0 < ends["1.1"].usage.completion_tokens < 7000
    assert ends["2.1"].reason is FinishReason.LENGTH


def test_a_refused_job_leaves_it_at_work(child):
    """A prompt that is too long is answered with the counts, in usage too, and the next job runs."""
    child.wire.send(ask(1, (Turn("user", "7" * 9000),)))
    *before, failed = child.wire.until(Failed)
    (counted,) = [each for each in before if isinstance(each, Progress)]
    assert f"has {counted.unprocessed_tokens} tokens" in failed.message
    assert failed.code is Code.PROMPT_TOO_LONG
    assert "8191" in failed.message
    child.wire.send(ask(2))
    child.wire.until(Finished)


def test_it_exits_when_the_socket_closes(child):
    """An idle child notices that nobody is there."""
    child.wire.hang_up()
    assert child.status() == 0


def test_it_exits_when_the_socket_closes_at_work(child):
    """So does one in the middle of a text."""
    child.wire.send(ask(1, max_tokens=8000))
    child.wire.until(Text)
    child.wire.hang_up()
    assert child.status() == 0


def test_it_dies_with_its_parent(tiny_model):
    """Also when the socket stays open in somebody else's hands."""
    ours, theirs = socket.socketpair()
    with theirs:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE,
            text=True,
        )
        with parent.stdout as said:
            child = psutil.Process(int(said.readline()))
        wire = Wire(ours)
        wire.send(Load(str(tiny_model), "onnx", 500, 1, 1))
        assert isinstance(wire.hear(), Ready)
        parent.kill()
        parent.wait(PATIENCE_S)
        # `theirs` is open here, so no end of file tells the child; an orphan nobody reaps stays a zombie.
        wait_for(lambda: not child.is_running() or child.status() in DEAD, "the orphan to be gone")
    wire.hang_up()


def test_it_does_not_begin_for_a_parent_that_is_gone():
    """The parent may die before the child can ask to be told."""
    with Child(parent=1) as child:
        assert child.status() == 0


def test_signals_to_the_group_do_not_end_it(child):
    """What becomes of running jobs is the parent's to decide."""
    child.wire.send(ask(1, max_tokens=500))
    child.wire.until(Text)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child.process.send_signal(number)
    *_, end = child.wire.until(Finished)
    assert end.usage.completion_tokens == 500


def test_it_has_a_name_and_goes_first_when_memory_runs_out(child):
    """Readable in ps and in the kernel's log; native output goes where errors go."""
    proc = Path(f"/proc/{child.process.pid}")
    assert (proc / "comm").read_text().strip() == "ea-engine"
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    assert int((proc / "oom_score_adj").read_text()) == min(1000, ours + 500)
    assert (proc / "fd/1").readlink() == (proc / "fd/2").readlink()


def test_a_folder_that_is_no_model_is_named(tmp_path):
    """The answer says what is missing and which setting to mend, and the child exits."""
    for folder in (tmp_path, tmp_path / "absent"):
        with Child() as child:
            failed = child.load(folder)
            assert isinstance(failed, LoadFailed)
            assert failed.code is Code.MODEL_MISSING
            assert str(folder) in failed.message
            assert "models.serve.path" in failed.message
            assert child.status() == 1


@pytest.mark.parametrize("damage", ["genai_config.json", "tokenizer.json", "weights"])
def test_a_damaged_model_is_named(tmp_path, tiny_model, damage):
    """The answer carries the reason; nothing crashes."""
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "weights":
        for file in tmp_path.glob("*.onnx.data"):
            file.unlink()
    else:
        (tmp_path / damage).write_text("{")
    with Child() as child:
        failed = child.load(tmp_path)
        assert isinstance(failed, LoadFailed)
        assert failed.code is Code.MODEL_ERROR
        assert str(tmp_path) in failed.message
        assert child.status() == 1


def test_a_missing_library_is_answered_with_the_install_line(tmp_path, tiny_model):
    """What to type, not a traceback."""
    (tmp_path / "onnxruntime_genai.py").write_text(
        "raise ModuleNotFoundError('No module named onnxruntime_genai', name='onnxruntime_genai')"
    )
    with Child(environment={"PYTHONPATH": str(tmp_path)}) as child:
        failed = child.load(tiny_model)
        assert failed.code is Code.UNSUPPORTED
        assert "pip install 'edge-slm-agent[cpu]'" in failed.message
        assert child.status() == 1


def test_it_crashes_on_a_peer_that_is_not_ours():
    """Garbage is no command: better another child than a guess."""
    with Child(stderr=subprocess.DEVNULL) as stranger:
        stranger.wire.send(Close())
        assert stranger.status() == 1
