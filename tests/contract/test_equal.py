"""The backends against one another: the same weights, computed in float32, give the same text."""

import random

import pytest
from conftest import SUBJECTS, require
from driving import drive

from edge_agent.engine.messages import Generation, Turn

pytestmark = pytest.mark.engine

REFERENCE = "onnx"


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    """Return the same random weights, loaded with one of the backends; each is loaded once."""
    from edge_agent.synth import build_text

    folders, models = {}, {}

    def model(name):
        subject = SUBJECTS[name]
        require(subject)
        if subject.folders not in folders:
            out = tmp_path_factory.mktemp("float") / subject.folders
            folders[subject.folders] = build_text(out, backend=subject.folders, int8_activations=False)
        if name not in models:
            folder = folders[subject.folders]
            models[name] = subject.load(folder, context_tokens=4096, parallel=4, options=subject.exact)
        return models[name]

    yield model
    for each in models.values():
        each.close()


@pytest.mark.parametrize("length", [1, 15, 100, 1000])
@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != REFERENCE])
def test_a_backend_says_the_same_as_the_others(float_model, job_id, name, length):
    """Prompt, weights, attention, choice of tokens and their text agree, over 48 tokens."""
    turns = (Turn("user", "".join(random.Random(length).choices("0123456789 pump\u00fc", k=length))),)
    said, expected = (drive(float_model(each), Generation(job_id(), turns, 48))[0] for each in (name, REFERENCE))
    assert said.end.usage.prompt_tokens == expected.end.usage.prompt_tokens
    assert said.text == expected.text
    assert said.end.usage.completion_tokens == 48
