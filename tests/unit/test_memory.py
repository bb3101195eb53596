"""What a load needs, and how much of what was asked for fits."""

import json
from dataclasses import replace

import pytest
from fakes import GIB, machine

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.openvino.facts import KV_PRECISION
from edge_agent.models.catalogue import read
from edge_agent.models.load import Placed, own_held_bytes, prepare
from edge_agent.models.memory import (
    Build,
    Needed,
    Room,
    Shortage,
    build_of,
    fit,
    needed,
    read_build,
    reserved,
    with_settings,
)
from edge_agent.settings.load import ServeSection
from hardware.probe import probe
from tests.machines import build

MIB = 2**20
FULL = Build("onnx", weight_bytes=2645 * MIB, kv_values_per_token=196_608, heads=32, original_context_tokens=4096)
"""The true sizes of Phi-3.5-mini."""
OPENVINO = replace(FULL, backend="openvino")
CONFIGS = {
    "onnx": {
        "genai_config.json": {
            "model": {
                "type": "phi3",
                "context_length": 131_072,
                "decoder": {
                    "num_hidden_layers": 32,
                    "num_key_value_heads": 32,
                    "head_size": 96,
                    "num_attention_heads": 32,
                },
            }
        }
    },
    "openvino": {
        "config.json": {
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "hidden_size": 3072,
            "max_position_embeddings": 131_072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.1]},
        }
    },
}
WEIGHTS = {"onnx": "model.onnx.data", "openvino": "openvino_model.bin"}


def write_build(folder, backend="onnx", weight_bytes=2645 * MIB):
    for name, config in CONFIGS[backend].items():
        (folder / name).write_text(json.dumps(config))
    with (folder / WEIGHTS[backend]).open("wb") as data:
        data.truncate(weight_bytes)
    return folder


def need(build=FULL, **asked):
    return needed(build, **({"device": "cpu", "context_tokens": 1024, "parallel": 1} | asked)).bytes


@pytest.mark.parametrize("backend", CONFIGS)
def test_a_build_is_read_from_its_folder(tmp_path, backend):
    """Both kinds of folder tell the same numbers."""
    found = read_build(write_build(tmp_path, backend), backend)
    assert replace(found, context=None) == Build(backend, 2645 * MIB, 196_608, 32, 4096)
    assert found.context.tokens == {"onnx": 131_072, "openvino": 4096}[backend]
    assert read_build(tmp_path / "absent", backend) is None


def test_the_catalogue_tells_the_same_of_a_published_build():
    """Before it is fetched."""
    catalogue = read()
    (variant,) = catalogue.builds_of("phi-3.5-mini-onnx-cpu-int4")
    build = build_of(variant, catalogue.family_of(variant))
    assert (build.kv_values_per_token, build.heads, build.original_context_tokens) == (196_608, 32, 4096)


VISION = {"onnx": "phi-3.5-vision-onnx-cpu-int4", "openvino": "phi-3.5-vision-openvino-int4"}


@pytest.mark.parametrize("backend", VISION)
def test_a_build_that_sees_needs_more(tmp_path, backend):
    """The encoder's work and what it makes of a prompt's images, by its folder as by the catalogue."""
    from edge_agent.synth import TINY, TINY_VISION, build_text

    if backend == "openvino":
        pytest.importorskip("openvino_tokenizers")
    folders = [build_text(tmp_path / str(n), backend=backend, shape=s) for n, s in enumerate((TINY, TINY_VISION))]
    blind, seeing = (read_build(folder, backend) for folder in folders)
    assert (blind.hidden_size, seeing.hidden_size) == (None, 64)
    assert need(seeing) - need(replace(seeing, hidden_size=None)) > 100 * MIB
    catalogue = read()
    (variant,) = catalogue.builds_of(VISION[backend])
    assert build_of(variant, catalogue.family_of(variant)).hidden_size == 3072


FULL_VISION = Build("onnx", 3_218_366_095, 196_608, 32, 4096, hidden_size=3072)
FULL_OPENVINO = Build("openvino", 2_315_483_180, 196_608, 32, 4096)
SEEING_OPENVINO = Build("openvino", 2_336_000_000, 196_608, 32, 4096, 3072)


@pytest.mark.parametrize(
    ("build", "context_tokens", "measured_mib"),
    [
        (FULL, 1024, 3692),
        (FULL, 4096, 5989),
        (FULL, 8192, 10_640),
        (FULL_VISION, 2543, 5530),
        (FULL_OPENVINO, 1024, 2368),
        (FULL_OPENVINO, 4096, 3078),
        (SEEING_OPENVINO, 4096, 3913),
    ],
)
def test_the_prediction_is_within_a_tenth_of_what_was_measured(build, context_tokens, measured_mib):
    """By tests/bench/memory.py, with onnxruntime-genai 0.18 and openvino-genai 2026.4."""
    assert need(build, context_tokens=context_tokens) == pytest.approx(measured_mib * MIB, rel=0.1)


def test_lanes_and_context_cost_their_caches_and_the_rope_switch_its_scores():
    """32-bit keys and values on the processor; the first piece of a long prompt reaches beyond the switch."""
    base = need(context_tokens=4096)
    assert need(context_tokens=4096, parallel=2) - base >= 4096 * 196_608 * 4
    assert need(context_tokens=4097) - base > GIB


def test_a_device_with_memory_of_its_own_takes_little_of_the_machines():
    """The weights lie on the card."""
    on_card = needed(FULL, device="cuda", context_tokens=4096, parallel=1)
    assert on_card.host_bytes < FULL.weight_bytes < on_card.bytes
    on_cpu = needed(FULL, device="cpu", context_tokens=4096, parallel=1)
    assert on_cpu.host_bytes == on_cpu.bytes


@pytest.mark.parametrize("free_gib", [4, 5, 6, 8, 16, 64, 256])
def test_the_context_that_fits_is_the_longest(free_gib):
    """One token more would not fit."""
    room_bytes = free_gib * GIB
    found = fit(FULL, Room("cpu", room_bytes), context_tokens=131_072, parallel=1)
    tokens = found.context_tokens
    assert found.parallel == 1
    assert reserved(need(context_tokens=tokens)) <= room_bytes
    if tokens < 131_072:
        assert reserved(need(context_tokens=tokens + 1)) > room_bytes


def test_a_precision_of_the_cache_counts_in_what_is_planned():
    """Twice the memory for twice the bits; a setting that says nothing of it changes nothing."""
    cache = {each: with_settings(OPENVINO, {KV_PRECISION: each}) for each in ("u4", "u8", "f16", "f32")}
    sizes = [need(build, context_tokens=4096, parallel=4) for build in cache.values()]
    assert sizes == sorted(sizes)
    assert sizes[3] - sizes[2] == 2 * 4 * 4096 * OPENVINO.kv_values_per_token
    assert need(cache["u8"]) == need(OPENVINO)
    assert with_settings(OPENVINO, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}) == OPENVINO


def test_lanes_are_given_up_before_context():
    """A prompt that is refused is worse than one that waits."""
    room = Room("cpu", reserved(need(context_tokens=4096, parallel=3)))
    found = fit(FULL, room, context_tokens=4096, parallel=8)
    assert (found.context_tokens, found.parallel) == (4096, 3)


NEED = Needed(4 * GIB, GIB)
"""Of a card: little of it is the machine's."""


@pytest.mark.parametrize(
    ("room", "short"),
    [
        (Room("gpu", None), None),
        (Room("gpu", reserved(4 * GIB)), None),
        (Room("gpu", reserved(4 * GIB) - 1), Shortage(reserved(4 * GIB), reserved(4 * GIB) - 1)),
        (Room("gpu", -5), Shortage(reserved(4 * GIB), 0)),
        (Room("gpu", reserved(GIB), shared=False), None),
        (Room("gpu", reserved(GIB) - 1, shared=False), Shortage(reserved(GIB), reserved(GIB) - 1)),
        (Room("gpu", None, reserved(4 * GIB), shared=False), None),
        (Room("gpu", 0, 5, shared=False), Shortage(reserved(4 * GIB), 5, "gpu")),
    ],
)
def test_each_memory_is_held_against_what_it_is_to_hold(room, short):
    """To the byte; what nobody knows bounds nothing, and the device's own is named first."""
    assert room.shortage(NEED) == short


def test_what_fits_is_the_most_or_what_the_least_lacks():
    """One rule for choosing and loading."""
    asked = {"context_tokens": 4096, "parallel": 2}
    need_bytes = reserved(need(context_tokens=4096))
    found = fit(FULL, Room("cpu", need_bytes), **asked)
    assert (found.context_tokens, found.parallel, reserved(found.need.bytes)) == (4096, 1, need_bytes)
    least_bytes = reserved(need(context_tokens=256))
    assert fit(FULL, Room("cpu", least_bytes), **asked).context_tokens == 256
    assert fit(FULL, Room("cpu", least_bytes - 1), **asked) == Shortage(least_bytes, least_bytes - 1)
    assert fit(FULL, Room("cpu", 0), context_tokens=100, parallel=1) == Shortage(reserved(need(context_tokens=100)), 0)
    assert str(Shortage(2 * MIB, MIB)) == "needs 2 MiB with the shortest context, 1 MiB are free"
    assert str(Shortage(2 * MIB, MIB, "npu")).endswith("1 MiB of the npu's own are free")


def test_a_load_is_bounded_by_what_is_free_and_by_the_cgroup(tmp_path):
    """The smaller of the two decides."""
    placed, serve = Placed(write_build(tmp_path), "onnx"), ServeSection(name="phi", path=tmp_path)
    spec, limit_bytes = prepare(placed, serve, machine(64))
    assert (spec.context_tokens, spec.threads, spec.backend, spec.device) == (4096, 3, "onnx", "cpu")
    assert limit_bytes == reserved(need(context_tokens=4096))
    spec, limit_bytes = prepare(placed, serve, machine(64, limit_gib=5))
    assert spec.context_tokens < 4096
    assert limit_bytes <= 5 * GIB


def test_what_others_were_granted_is_not_free(tmp_path):
    """Two engines that load at once do not both count on the same memory."""
    placed, serve = Placed(write_build(tmp_path), "onnx"), ServeSection(name="phi", path=tmp_path)
    whole, _ = prepare(placed, serve, machine(8))
    shared, _ = prepare(placed, serve, machine(8), reserved_bytes=3 * GIB)
    assert shared.context_tokens < whole.context_tokens
    with pytest.raises(EdgeAgentError) as caught:
        prepare(placed, serve, machine(8), reserved_bytes=6 * GIB)
    assert caught.value.code is Code.NO_FIT


@pytest.mark.parametrize("backend", CONFIGS)
def test_what_cannot_fit_is_refused_with_what_to_do(tmp_path, backend):
    """With the numbers."""
    placed = Placed(write_build(tmp_path, backend), backend)
    with pytest.raises(EdgeAgentError, match=r"needs \d+ MiB .* 2048 MiB are free; free memory or take a") as caught:
        prepare(placed, ServeSection(name="phi", path=tmp_path), machine(2))
    assert caught.value.code is Code.NO_FIT


def test_a_reservation_is_the_prediction_and_a_margin():
    """An engine over it is killed, so it is not the prediction itself."""
    assert reserved(1000 * MIB) == 1356 * MIB


def test_a_device_that_computes_in_the_machines_memory_takes_all_of_it_there(tmp_path):
    """Only a card with memory of its own spares the machine's."""
    serve = ServeSection(name="phi", path=tmp_path)
    folder = write_build(tmp_path, "openvino")
    shared = Placed(folder, "openvino", "gpu", shares_memory=True)
    card = Placed(folder, "openvino", "gpu", shares_memory=False)
    _, shared_bytes = prepare(shared, serve, machine(16))
    _, card_bytes = prepare(card, serve, machine(16))
    assert card_bytes < 2645 * MIB < shared_bytes


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """The machines of the trees that have a card with memory of its own, by the card's name."""
    found = {}
    for name in ("nvidia-server", "arc-a770-box"):
        there = probe(build(name, tmp_path_factory.mktemp(name)))
        found[there.accelerators[0].name] = replace(there, memory=machine(64).memory)
    return found


@pytest.mark.parametrize(
    ("card", "backend", "device"), [("NVIDIA A10G", "onnx", "cuda"), ("DG2 [Arc A770]", "openvino", "gpu")]
)
def test_what_models_hold_of_one_card_is_reckoned_together(tmp_path, cards, card, backend, device):
    """The second gets what is left there: fewer lanes, then less context; the third nothing, wherever there is room."""
    there, folder = cards[card], write_build(tmp_path, backend)
    serve = ServeSection(name="phi", path=folder, context_tokens=4096, parallel=2)

    def load(own_bytes, *beside):
        return prepare(Placed(folder, backend, device, own_bytes=own_bytes), serve, there, beside=beside)[0]

    def held(*specs):
        return own_held_bytes(there.accelerators[0], specs, there)

    alone = load(None)
    own_bytes = int(1.7 * held(alone))
    first = load(own_bytes)
    second = load(own_bytes, first)
    assert (first.context_tokens, first.parallel) == (4096, 2)
    assert (second.context_tokens, second.parallel) < (4096, 2)
    assert held(first, second) <= own_bytes < held(first, first)
    with pytest.raises(EdgeAgentError, match=rf"of the {device}'s own are free; unload what is there") as full:
        load(own_bytes, first, second)
    assert full.value.code is Code.NO_FIT
    assert load(own_bytes, replace(first, device="cpu")) == first
    small = replace(there, accelerators=(replace(there.accelerators[0], memory_bytes=2 * GIB),))
    with pytest.raises(EdgeAgentError, match="2048 MiB of the"):
        prepare(Placed(folder, backend, device), serve, small)
