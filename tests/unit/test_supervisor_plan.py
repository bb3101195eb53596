"""What is done with an engine, as a table: how it is seen, what follows."""

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.hosting.plan import IDLE_S, LOAD_S, PROMPT_SLACK, SILENCE_S, Act, EngineView, plan
from edge_agent.engine.hosting.status import automatic, check_images
from edge_agent.engine.phase import Phase
from edge_agent.jobs.job import Failure

MIB = 2**20
FAILURE = Failure.because(Code.MODEL_ERROR, "no numbers")


def ready(**seen):
    return EngineView(Phase.READY, alive=True, **seen)


def starting(**seen):
    return EngineView(Phase.STARTING, alive=True, **seen)


def down(**seen):
    return EngineView(Phase.DOWN, **seen)


@pytest.mark.parametrize(
    ("view", "act"),
    [
        # none runs
        (down(), Act.START),
        (down(waited_s=0.9, backoff_s=1.0), Act.KEEP),
        (down(waited_s=1.0, backoff_s=1.0), Act.START),
        (EngineView(Phase.FAILED, waited_s=60.0, backoff_s=60.0), Act.START),
        (EngineView(Phase.FAILED, waited_s=59.0, backoff_s=60.0), Act.KEEP),
        # it ended
        (ready(exited=True), Act.BURY),
        (starting(exited=True), Act.BURY),
        (EngineView(Phase.FAILED, alive=True, exited=True), Act.BURY),
        (EngineView(Phase.FAILED, alive=True, silent_s=SILENCE_S), Act.KEEP),
        (EngineView(Phase.FAILED, alive=True, silent_s=SILENCE_S + 1), Act.KILL),
        (ready(exited=True, anonymous_bytes=2, memory_bytes=1), Act.BURY),
        # memory
        (ready(anonymous_bytes=2 * MIB, memory_bytes=MIB), Act.KILL),
        (starting(anonymous_bytes=2 * MIB, memory_bytes=MIB), Act.KILL),
        (ready(anonymous_bytes=MIB, memory_bytes=MIB), Act.KEEP),
        (ready(anonymous_bytes=2 * MIB), Act.KEEP),
        (ready(memory_bytes=MIB), Act.KEEP),
        # silence of what it holds; jobs that it may get in a moment are not held
        (ready(busy=True, silent_s=SILENCE_S), Act.KEEP),
        (ready(busy=True, silent_s=SILENCE_S + 0.1), Act.KILL),
        (ready(busy=True, idle_s=1e6), Act.KEEP),
        (ready(busy=True, silent_s=1.1, silence_s=1.0), Act.KILL),
        (ready(busy=True, silent_s=SILENCE_S + 39, unprocessed_tokens=1000, prefill_per_s=100.0), Act.KEEP),
        (ready(busy=True, silent_s=SILENCE_S + 41, unprocessed_tokens=1000, prefill_per_s=100.0), Act.KILL),
        # given up for a while
        (ready(unloads="heat"), Act.UNLOAD),
        (starting(unloads="heat"), Act.UNLOAD),
        (down(unloads="heat"), Act.UNLOAD),
        (ready(unloads="heat", exited=True), Act.BURY),
        (EngineView(Phase.UNLOADED, unloads="heat", waited_s=99.0), Act.KEEP),
        (EngineView(Phase.UNLOADED), Act.START),
        (EngineView(Phase.UNLOADED, unloads="heat", rests="idle"), Act.KEEP),
        # not needed now
        (ready(rests="idle"), Act.UNLOAD),
        (ready(rests="idle", busy=True), Act.KEEP),
        (ready(rests="idle", busy=True, silent_s=99.0), Act.KILL),
        (ready(rests="idle", exited=True), Act.BURY),
        (down(rests="idle"), Act.UNLOAD),
        (down(rests="idle", waited_s=0.5, backoff_s=1.0), Act.KEEP),
        (EngineView(Phase.FAILED, rests="idle", waited_s=0.5, backoff_s=1.0), Act.KEEP),
        (EngineView(Phase.UNLOADED, rests="idle"), Act.KEEP),
        # loading
        (starting(silent_s=LOAD_S), Act.KEEP),
        (starting(silent_s=LOAD_S + 1), Act.KILL),
        (starting(busy=True, silent_s=SILENCE_S + 1), Act.KEEP),
        # being tried
        (starting(tried=True, silent_s=SILENCE_S), Act.KEEP),
        (starting(tried=True, silent_s=SILENCE_S + 1), Act.KILL),
        (starting(marked_for_kill=FAILURE), Act.KILL),
        (ready(marked_for_kill=FAILURE, exited=True), Act.KILL),
        # a better place
        (ready(better=True, idle_s=IDLE_S + 0.1), Act.MOVE),
        (ready(better=True, idle_s=IDLE_S), Act.KEEP),
        (ready(better=True, idle_s=IDLE_S + 0.1, busy=True), Act.KEEP),
        (starting(better=True, idle_s=IDLE_S + 0.1), Act.KEEP),
        (ready(better=True, idle_s=IDLE_S + 0.1, unloads="heat"), Act.UNLOAD),
    ],
)
def test_what_follows_from_a_view(view, act):
    assert plan(view).act is act


def test_the_reason_and_the_code_are_those_its_jobs_are_told():
    """An engine over its reservation is out of memory, in MiB; any other end is a death with its cause."""
    over = plan(ready(anonymous_bytes=5 * MIB, memory_bytes=3 * MIB))
    assert (over.code, over.reason) == (Code.OUT_OF_MEMORY, "the engine took 5 MiB, its reservation is 3 MiB")
    silent = plan(ready(busy=True, silent_s=99.0))
    assert (silent.code, silent.reason) == (Code.ENGINE_DIED, "the engine said nothing for 99 s")
    assert plan(ready(exited=True)).code is Code.ENGINE_DIED


def test_patience_with_a_prompt_is_four_times_its_measured_time():
    assert PROMPT_SLACK == 4.0


TEXT_AND_VISION = {"reads": 0, "sees": 4, "loads": None}


@pytest.mark.parametrize(
    ("most", "images", "name"),
    [
        (TEXT_AND_VISION, 0, "reads"),
        (TEXT_AND_VISION, 1, "sees"),
        (TEXT_AND_VISION, 5, "loads"),
        ({"sees": 4}, 0, "sees"),
        ({"sees": 4, "loads": None}, 0, "loads"),
        ({"reads": 0}, 1, "reads"),
        ({"first": None, "second": None}, 1, "first"),
    ],
)
def test_auto_is_the_first_that_does_or_may_do(most, images, name):
    """For text a text model, so that the one that sees is free for images."""
    assert automatic(most, images=images) == name


@pytest.mark.parametrize(
    ("name", "images", "sentence"),
    [
        ("reads", 1, "messages: reads is a text model and takes no images; this agent's sees would"),
        ("sees", 5, "messages: sees takes at most 4 images; no model of this agent does"),
    ],
)
def test_too_many_images_are_refused_with_who_would_take_them(name, images, sentence):
    with pytest.raises(EdgeAgentError) as refused:
        check_images(name, TEXT_AND_VISION, images=images)
    assert (refused.value.code, refused.value.message) == (Code.UNSUPPORTED, sentence)
    check_images("sees", TEXT_AND_VISION, images=4)
    check_images("loads", TEXT_AND_VISION, images=99)
