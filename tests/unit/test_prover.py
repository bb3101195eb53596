"""Guides are tried in a process that may die of them: what is remembered, whose fault that is, what is waited for."""

import os
import signal
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from running import wait_for

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.guides.burden import Burden, GuideAllowance, StepTimes
from edge_agent.engine.guides.guide import ALLOWED_S, EASY_S, SLOW_S
from edge_agent.engine.hosting.prover import NotTriedError, Prover
from edge_agent.engine.messages import Guide, GuideKind, ModelLimits, Ready

GREET = "import sys, os, signal, time, json; print('{}', flush=True); "
FINE = '{"slowest_s": 0.1, "kept_bytes": 70}'
GOOD = GREET + f"[print({FINE!r}, flush=True) for line in sys.stdin]"
BAD = GREET + '[print(\'{"code": "bad_request", "message": "response_format: no"}\', flush=True) for _ in sys.stdin]'
DIES = GREET + "input(); os.kill(os.getpid(), signal.SIGKILL)"
ABORTS = GREET + "input(); os.abort()"
SLEEPS = GREET + "input(); time.sleep(600)"
RUNS_OUT = GREET + "input(); os.kill(os.getpid(), signal.SIGXCPU)"


@dataclass
class Engine:
    """As much of an engine as a guide is tried for."""

    library: str = "llguidance 1"
    backend: str = "onnx"
    spec: ModelSpec = field(init=False)

    def __post_init__(self):
        self.spec = ModelSpec(Path("/models/phi"), self.backend, 4096, 1, 1)
        self.ready = Ready(ModelLimits(4096, 1), 0.0, self.library, "cpu")


ENGINE = Engine()


def regex(text):
    return Guide(GuideKind.REGEX, text)


@pytest.fixture
def prover():
    made = []

    def make(program, **settings):
        made.append(Prover(command=lambda _spec: (sys.executable, "-c", program), **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def refusal(prover, guide, engine=ENGINE):
    with pytest.raises(EdgeAgentError) as refused:
        prover.prove(guide, engine)
    assert refused.value.code is Code.BAD_REQUEST
    assert refused.value.message.startswith("response_format: ")
    return refused.value.message


def test_a_good_guide_is_tried_once(prover, tmp_path):
    """For one library and one vocabulary: another's may take it otherwise."""
    asked = tmp_path / "asked"
    proving = prover(
        GREET + f"[(open({str(asked)!r}, 'a').write('x'), print({FINE!r}, flush=True)) for _ in sys.stdin]"
    )
    for _ in range(1000):
        proving.prove(regex("a"), ENGINE)
    assert proving.proven(regex("a"), ENGINE) == 70
    assert proving.proven(regex("b"), ENGINE) is None
    assert asked.read_text() == "x"
    newer = Engine("llguidance 2")
    other = Engine()
    other.spec = replace(other.spec, path=Path("/models/psi"))
    for engine in (newer, other):
        assert proving.proven(regex("a"), engine) is None
        proving.prove(regex("a"), engine)
    assert asked.read_text() == "xxx"
    anothers = replace(regex("a"), owner="line-4")
    assert not proving.proven(anothers, ENGINE)  # or the time would tell that somebody had asked for it
    proving.prove(anothers, ENGINE)
    assert asked.read_text() == "xxxx"


def test_a_hostile_guide_sent_a_thousand_times_is_tried_once(prover, tmp_path):
    """The clock stands still until the child has used more of the processor than any good guide does."""
    spun = tmp_path / "spun"
    spin = f"while time.process_time() < 2: pass\nopen({str(spun)!r}, 'a').write('x')"
    program = f"{GREET}input()\n{spin}\ntime.sleep(600)"
    proving = prover(program, trial_s=0.5, now_s=lambda: 100.0 if spun.exists() else 0.0)
    said = {refusal(proving, regex("a")) for _ in range(1000)}
    assert said == {"response_format: is not compiled after 0.5 s; simplify it"}
    assert spun.read_text() == "x"
    assert proving.proven(regex("a"), ENGINE) is None


def test_no_more_verdicts_are_kept_than_some(prover):
    """The one used longest ago is forgotten."""
    proving = prover(GOOD, kept=2)
    for text in ("a", "b", "a", "c"):
        proving.prove(regex(text), ENGINE)
    assert [proving.proven(regex(text), ENGINE) for text in "abc"] == [70, None, 70]


def test_what_is_over_the_bounds_starts_no_process(prover):
    proving = prover(GOOD)
    refusal(proving, regex("a{1000}"))
    assert proving.pid is None


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (BAD, "no"),
        (DIES, "ended the program that tries it, twice (SIGKILL); simplify it"),
        (ABORTS, "ended the program that tries it, twice (SIGABRT); simplify it"),
        (GREET + "input(); sys.exit(3)", "ended the program that tries it, twice (exit 3); simplify it"),
        (GREET + "input(); print('x' * 9000, flush=True); input()", "ended the program that tries it, twice (said"),
        (RUNS_OUT, "takes over 2 s to compile; simplify it"),
    ],
)
def test_a_guide_of_which_the_process_dies_is_refused(prover, program, said):
    assert refusal(prover(program), regex("a")).startswith(f"response_format: {said}")


def test_a_process_that_is_killed_in_the_middle_is_replaced(prover, tmp_path):
    """Somebody else may have been meant, as when memory runs out."""
    first = tmp_path / "first"
    program = GREET + (
        f"f = {str(first)!r}\n"
        "for line in sys.stdin:\n"
        "    if not os.path.exists(f): open(f, 'w').write(str(os.getpid())); time.sleep(600)\n"
        f"    print({FINE!r}, flush=True)"
    )
    proving = prover(program)
    failed = []
    trial = threading.Thread(target=lambda: failed.append(proving.prove(regex("a"), ENGINE)))
    trial.start()
    pid = wait_for(lambda: first.exists() and first.read_text(), "a trial")
    os.kill(int(pid), signal.SIGKILL)
    trial.join()
    assert proving.proven(regex("a"), ENGINE) == 70
    assert proving.pid not in (None, int(pid))


def test_a_process_that_has_no_time_condemns_nobody(prover):
    """The machine has none for it: it is tried again later."""
    proving = prover(SLEEPS, trial_s=0.2)
    with pytest.raises(NotTriedError, match="the machine has no time"):
        proving.prove(regex("a"), ENGINE)
    assert proving.proven(regex("a"), ENGINE) is None


@pytest.mark.parametrize("command", [("/no/such/program",), (sys.executable, "-c", "import sys; sys.exit(1)")])
def test_a_process_that_cannot_be_started_is_our_fault(command):
    proving = Prover(command=lambda _spec: command)
    with pytest.raises(NotTriedError, match="cannot be started"):
        proving.prove(regex("a"), ENGINE)


def test_where_nothing_is_compiled_nothing_is_tried(prover):
    proving = prover(DIES)
    elsewhere = Engine(backend="openai")
    proving.prove(regex("a"), elsewhere)
    assert proving.proven(regex("a"), elsewhere) == 0
    assert proving.pid is None


def test_what_turned_out_too_slow_is_refused_from_then_on(prover):
    proving = prover(GOOD)
    proving.prove(regex("a"), ENGINE)
    proving.refuse(regex("a"), ENGINE, EdgeAgentError(Code.BAD_REQUEST, "response_format: slow"))
    assert refusal(proving, regex("a")) == "response_format: slow"


@pytest.mark.parametrize(
    ("steps", "heavy"),
    [
        ([(0.1, 0.2)] * 9, False),
        ([(0.1, 0.2), (0.15, 0.3), (0.2, 0.4)], False),
        ([(0.1, 0.2), (0.9, 0.2)], False),  # others took the processor
        ([(0.1, 0.2), (0.2, 9.0)], False),  # many threads
        ([(0.1, 0.2), (0.9, 1.0)], True),
        ([(0.001, 0.001), (0.3, 0.3), (0.4, 0.4)], True),
        ([(2.0, 4.0), (4.0, 8.0)], False),  # a slow machine
    ],
)
def test_a_step_that_took_far_longer_than_usual_is_found(steps, heavy):
    burden = Burden()
    *before, last = (StepTimes(*each) for each in steps)
    assert not any(burden.heavy(each, texts=1, guided=True) for each in before)
    assert burden.heavy(last, texts=1, guided=True) is heavy


@pytest.mark.parametrize("guided", [True, False])
def test_what_becomes_usual_is_borne(guided):
    """Longer texts, and more of them; without guides the machine may be as slow as it likes."""
    burden, most = Burden(), 5 if guided else 100
    grown = (min(most, 1.01**step) * (1 + step // 100) for step in range(800))
    took = (StepTimes(0.1 * times, 0.1 * times) for times in grown)
    assert not any(burden.heavy(each, texts=1 + step // 100, guided=guided) for step, each in enumerate(took))


def test_many_steps_that_take_a_little_longer_are_found():
    """Each is hardly slower than the one before, and all of them hold up everybody."""
    burden = Burden()
    burden.heavy(StepTimes(0.003, 0.003), texts=1, guided=False)
    crept = [min(0.3, 0.003 * 1.015**step) for step in range(400)]
    found = [step for step, each in enumerate(crept) if burden.heavy(StepTimes(each, each), texts=2, guided=True)]
    assert found
    assert sum(crept[: found[0]]) < 10


def test_what_tokens_may_take_is_bounded_in_all():
    easy, hard = GuideAllowance(), GuideAllowance()
    assert not any(easy.spent(EASY_S) for _ in range(10_000))
    assert [hard.spent(SLOW_S) for _ in range(9)].count(False) <= ALLOWED_S / (SLOW_S - EASY_S)
    assert GuideAllowance().spent(1.01 * SLOW_S)
