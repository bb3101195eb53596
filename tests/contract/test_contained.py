"""Whatever goes wrong in one generation ends that one, and the engine goes on as if it had never been."""

import pkgutil

import pytest
from driving import outcome

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.contained import BrokenError
from edge_agent.engine.messages import Failed, Finished, FinishReason, Generation, Progress, Text, Turn

QUESTION = (Turn("user", "is the pump on? " * 8),)
OTHER = (Turn("user", "the fan, the door and the lamp " * 8),)
MARK = ("the victim's",)
SECRET = "what the requester sent"


class PanicException(BaseException):
    """What libraries written in Rust raise, by its name."""


ERRORS = (RecursionError, MemoryError, ValueError, KeyError, TypeError, OSError, ZeroDivisionError, PanicException)
SEAMS = {
    "start": ("edge_agent.engine.text.detokenizer:Words.__init__", lambda *_, stop, **__: stop == MARK),
    "text": ("edge_agent.engine.text.detokenizer:Words.feed", lambda words, _: words._stops._stops == MARK),
    "cancel": ("edge_agent.engine.text.detokenizer:Words.rest", lambda words: words._stops._stops == MARK),
    "choice": ("edge_agent.engine.batching.sampling:Sampler.choose", lambda sampler, *_: sampler._temperature == 0.125),
    "copy": ("edge_agent.engine.batching.lanes:Lanes.take", lambda *_: True),
    "request": ("edge_agent.engine.openvino.model.sampling", lambda generation: generation.stop == MARK),
    "answer": ("edge_agent.engine.openvino.npu.sampling", lambda generation: generation.stop == MARK),
}
"""Where something may go wrong for one generation, and how the victim is told there."""
OF_KIND = {
    "LaneModel": ("start", "text", "cancel", "choice", "copy"),
    "OpenvinoModel": ("start", "text", "cancel", "request"),
    "NpuModel": ("start", "text", "cancel", "answer"),
}


def fail(monkeypatch, seam, error):
    """Let a place raise an error for the victim alone."""
    path, is_the_victim = SEAMS[seam]
    place, _, name = path.rpartition(".")
    owner = pkgutil.resolve_name(place)
    true = getattr(owner, name)

    def raising(*arguments, **named):
        if is_the_victim(*arguments, **named):
            raise error(SECRET)
        return true(*arguments, **named)

    monkeypatch.setattr(owner, name, raising)


@pytest.fixture
def whole(model, job_id):
    """Fail unless as many as may can be answered at once, and nothing is left behind."""
    yield
    everybody = [Generation(job_id(), QUESTION, 3) for _ in range(model.limits.parallel)]
    for each in everybody:
        model.start(each)
    events = _run(model, {each.job_id for each in everybody})
    assert all(isinstance(outcome(events, each.job_id).end, Finished) for each in everybody)
    assert list(model.step()) == []


def _run(model, job_ids):
    """Step until some jobs have ended; return all events."""
    events, left = [], set(job_ids)
    for _ in range(2000):
        if not left:
            return events
        events += model.step()
        left -= {event.job_id for event in events if isinstance(event, Finished | Failed)}
    raise AssertionError(f"{left} did not end")


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("error", ERRORS)
def test_whatever_goes_wrong_in_one_generation_ends_it_alone(model, job_id, monkeypatch, error):
    """At each place where it can, with each kind of error; the neighbour's text is what it is without."""
    (free,) = (outcome(_run(model, {each.job_id}), each.job_id).text for each in [_begun(model, job_id())])
    for seam in OF_KIND[type(model).__name__]:
        neighbour = _begun(model, job_id())
        events = [event for _ in range(4) for event in model.step()]
        with monkeypatch.context() as patch:
            fail(patch, seam, error)
            failed = _fate(model, Generation(job_id(), OTHER, 12, 0.125, seed=1, stop=MARK), seam, events)
        assert failed.code is Code.INTERNAL, seam
        assert error.__name__ in failed.message
        assert SECRET not in failed.message
        events += _run(model, {neighbour.job_id} - {each.job_id for each in events if isinstance(each, Finished)})
        assert outcome(events, neighbour.job_id).text == free, seam


def _begun(model, job_id):
    generation = Generation(job_id, QUESTION, 24)
    model.start(generation)
    return generation


def _fate(model, victim, seam, events):
    """Return how the victim fails; what its neighbour says meanwhile is added to the events."""
    try:
        model.start(victim)
    except EdgeAgentError as error:
        return error
    if seam == "cancel":
        while not any(isinstance(event, Text | Progress) and event.job_id == victim.job_id for event in events):
            events += model.step()
        (failed,) = model.cancel(victim.job_id)
        return failed
    said = _run(model, {victim.job_id})
    events += said
    return outcome(said, victim.job_id).end


@pytest.mark.usefixtures("whole")
def test_a_cancel_of_one_that_failed_says_nothing(model, job_id, monkeypatch):
    with monkeypatch.context() as patch:
        fail(patch, "text", ValueError)
        _fate(model, victim := Generation(job_id(), OTHER, 12, stop=MARK), "text", [])
    assert list(model.cancel(victim.job_id)) == []
    model.start(again := Generation(job_id(), OTHER, 200))
    ends = [event for event in model.cancel(again.job_id) if isinstance(event, Finished)]
    assert [end.reason for end in ends] == [FinishReason.CANCELED]


def test_a_call_for_all_that_fails_ends_the_engine(load, folder, job_id, subject):
    """It is told apart from what one generation does: the engine cannot be asked again."""
    model = load(folder, parallel=1)
    if not hasattr(model, "_compute") or subject.device == "npu":
        pytest.skip("what this library says of a failure can be told of each generation")

    class Dead:
        def __init__(self, pipeline):
            self._pipeline = pipeline

        def __getattr__(self, name):
            return getattr(self._pipeline, name)

        def step(self):
            raise RuntimeError("Check 'false' failed")

    model.start(Generation(job_id(), QUESTION, 4))
    model._pipeline = Dead(alive := model._pipeline)
    with pytest.raises(BrokenError):
        list(model.step())
    model._pipeline = alive
