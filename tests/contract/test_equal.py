"""The backends against one another: the same weights, computed in float32, give the same text."""

import random

import pytest
from driving import drive

from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.messages import Generation, Turn

pytestmark = pytest.mark.engine

FLOAT32 = {
    "onnx": {},
    "openvino": {"KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
}
"""Options under which nothing but the weights is quantised; the onnx model says so itself."""


@pytest.fixture(scope="module")
def float_models(openvino_genai, tmp_path_factory):
    """The same random weights, loaded with every backend."""
    from edge_agent.synth import build_text

    models = []
    for name in backend.names():
        folder = build_text(tmp_path_factory.mktemp("float") / name, backend=name, int8_activations=False)
        models += [
            load(ModelSpec(folder, name, 4096, 4, threads=1, options=FLOAT32[name]))
            for load in (backend.find(name), *((backend.find(name, "npu"),) if name == "openvino" else ()))
        ]
    yield models
    for model in models:
        model.close()


@pytest.mark.parametrize("length", [1, 15, 100, 1000])
def test_all_backends_say_the_same(float_models, job_id, length):
    """Prompt, weights, attention, choice of tokens and their text agree, over 48 tokens."""
    turns = (Turn("user", "".join(random.Random(length).choices("0123456789 pump\u00fc", k=length))),)
    said = [drive(model, Generation(job_id(), turns, 48))[0] for model in float_models]
    assert len({each.end.usage.prompt_tokens for each in said}) == 1
    assert len({each.text for each in said}) == 1
    assert said[0].end.usage.completion_tokens == 48
