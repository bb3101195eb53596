"""White space between the parts of a JSON answer, said by a model that would say nothing else."""

import json
import re

import jsonschema
import numpy as np
import pytest
from driving import drive

from edge_agent.engine.messages import FinishReason, Generation, Guide, GuideKind, Turn

RUN_MAX = 32
NESTED = {
    "type": "object",
    "properties": {
        "device": {"enum": ["pump", "fan"]},
        "readings": {"type": "array", "items": {"type": "integer", "minimum": -40, "maximum": 120}, "minItems": 2},
        "at": {"type": "object", "properties": {"hall": {"type": "boolean"}}, "required": ["hall"]},
    },
    "required": ["device", "readings", "at"],
    "additionalProperties": False,
}


class BlankWeights:
    """After every token the likeliest is a new line, whatever came before; all others are alike.

    All embeddings have a direction in common, and the output layer hears nothing else.
    """

    def __init__(self, base, blank):
        self._base = base
        self._blank = blank

    def floats(self, name, shape):
        from edge_agent.synth.weights import EMBEDDING

        floats = self._base.floats(name, shape)
        return floats + 4 * np.abs(floats).max() if name == EMBEDDING else floats

    def int4(self, name, shape, *, block_size):
        from edge_agent.synth.quantize import quantize, zeros
        from edge_agent.synth.weights import LM_HEAD

        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return zeros(*shape, block_size=block_size)  # the output sees the current token alone
        if name != LM_HEAD:
            return self._base.int4(name, shape, block_size=block_size)
        head = np.zeros(shape, np.float32)
        head[self._blank] = 1 / shape[1] ** 0.5
        return quantize(head, block_size=block_size)


@pytest.fixture(scope="module")
def blank(load, subject, tmp_path_factory):
    """A model that would say new lines for ever."""
    from edge_agent.synth import TINY, build_text, tokenizer
    from edge_agent.synth.weights import RandomWeights

    *_, new_line = tokenizer.build(TINY.vocab_size).distinct_ids("\n")
    weights = BlankWeights(RandomWeights(0), new_line)
    return load(build_text(tmp_path_factory.mktemp("blank") / "model", backend=subject.folders, weights=weights))


def test_left_alone_it_says_new_lines(blank, job_id):
    """So the test below is none of a model that does not want to."""
    (said,) = drive(blank, Generation(job_id(), (Turn("user", "is the pump on?"),), 64))
    assert "\n" * 40 in said.text


@pytest.mark.parametrize("schema", [{"type": "object"}, NESTED], ids=["any object", "nested"])
def test_an_answer_does_not_run_out_in_white_space(blank, job_id, schema):
    """Between any two parts stands a bounded run of it, and the answer goes on."""
    guide = Guide(GuideKind.JSON_SCHEMA, json.dumps(schema))
    for options in ({}, *({"temperature": 1.0, "seed": seed} for seed in range(3))):
        (said,) = drive(blank, Generation(job_id(), (Turn("user", "is the pump on?"),), 600, guide=guide, **options))
        between = re.sub(r'"(?:[^"\\]|\\.)*("|$)', '""', said.text)
        assert not re.search(rf"\s{{{RUN_MAX + 1}}}", between)
        assert between.strip() != "{"
        if said.end.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(said.text), schema)
