"""Runs generations on a loaded model to their ends."""

from dataclasses import dataclass

from edge_agent.engine.messages import Failed, Finished, Text


@dataclass(frozen=True)
class Outcome:
    """What a generation came to: its text, its last event, and all events."""

    text: str
    end: Finished | Failed
    events: tuple


def drive(model, *generations, steps_most=20_000):
    """Run generations to their ends; return their outcomes in order."""
    for generation in generations:
        model.start(generation)
    events = []
    ended = set()
    for _ in range(steps_most):
        if len(ended) == len(generations):
            break
        for event in model.step():
            events.append(event)
            if isinstance(event, Finished | Failed):
                ended.add(event.job_id)
    return [outcome(events, generation.job_id) for generation in generations]


def outcome(events, job_id):
    """Return what became of one job in a list of events."""
    ours = tuple(event for event in events if event.job_id == job_id)
    text = "".join(event.text for event in ours if isinstance(event, Text))
    assert isinstance(ours[-1], Finished | Failed), "it did not end"
    return Outcome(text, ours[-1], ours)
