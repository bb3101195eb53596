"""What a load needs, and how long a context fits."""

import json

import pytest

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.models.load import prepare
from edge_agent.models.memory import Build, context_that_fits, read_build, reservation_bytes
from edge_agent.settings import ServeSection
from hardware.machine import Cpu, Machine, Memory

GIB, MIB = 2**30, 2**20
FULL = Build(weight_bytes=2645 * MIB, kv_bytes_per_token=786_432, heads=32)
"""The true sizes of Phi-3.5-mini; its peak was measured at 3790 MiB with a context of 1024."""

CONFIG = {
    "model": {
        "decoder": {"num_hidden_layers": 32, "num_key_value_heads": 32, "head_size": 96, "num_attention_heads": 32}
    }
}


def machine(available_bytes, limit_bytes=None):
    return Machine(
        cpu=Cpu(None, None, None, None, None, None, granted_cores=3),
        memory=Memory(None, available_bytes, None, limit_bytes),
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "genai_config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model.onnx.data").open("wb") as data:
        data.truncate(2645 * MIB)
    return tmp_path


def test_the_reservation_covers_what_was_measured_and_not_much_more():
    needed = reservation_bytes(FULL, context_tokens=1024, parallel=1)
    assert 3790 * MIB < needed < 3790 * MIB * 1.2


def test_lanes_and_context_cost_their_caches_and_the_rope_switch_its_scores():
    base = reservation_bytes(FULL, context_tokens=4096, parallel=1)
    assert reservation_bytes(FULL, context_tokens=4096, parallel=2) - base > 4096 * 786_432
    assert reservation_bytes(FULL, context_tokens=4097, parallel=1) - base > GIB


@pytest.mark.parametrize("available_gib", [4, 5, 6, 8, 16, 64, 256])
def test_the_context_that_fits_is_the_longest(available_gib):
    tokens = context_that_fits(FULL, asked_tokens=131_072, parallel=1, available_bytes=available_gib * GIB)
    assert reservation_bytes(FULL, context_tokens=tokens, parallel=1) <= available_gib * GIB
    if tokens < 131_072:
        assert reservation_bytes(FULL, context_tokens=tokens + 1, parallel=1) > available_gib * GIB


def test_a_build_is_read_from_its_folder(folder, tmp_path):
    assert read_build(folder) == FULL
    assert read_build(tmp_path / "absent") is None


def test_a_load_is_bounded_by_what_is_free_and_by_the_cgroup(folder):
    serve = ServeSection(name="phi", path=folder)
    spec, limit_bytes = prepare(serve, machine(64 * GIB))
    assert (spec.context_tokens, spec.threads, spec.backend) == (4096, 3, "onnx")
    assert limit_bytes == reservation_bytes(FULL, context_tokens=4096, parallel=1)
    spec, limit_bytes = prepare(serve, machine(64 * GIB, limit_bytes=5 * GIB))
    assert spec.context_tokens < 4096
    assert limit_bytes <= 5 * GIB


def test_what_cannot_fit_is_refused_with_what_to_do(folder):
    with pytest.raises(EdgeAgentError, match=r"free memory, lower models\.serve\.parallel") as caught:
        prepare(ServeSection(name="phi", path=folder), machine(2 * GIB))
    assert caught.value.code is Code.NO_FIT


def test_a_folder_without_a_model_is_said(tmp_path):
    with pytest.raises(EdgeAgentError) as caught:
        prepare(ServeSection(name="phi", path=tmp_path / "absent"), machine(GIB))
    assert caught.value.code is Code.MODEL_MISSING
    assert "mend models.serve.path" in caught.value.message
