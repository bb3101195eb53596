"""Sources of weights."""

import dataclasses
import struct

import numpy as np
import pytest

from edge_agent.synth import FULL, FULL_VISION, TINY, GivenWeights, RandomWeights, ScriptedWeights, safetensors
from edge_agent.synth.weights import EMBEDDING, LM_HEAD

QKV = "model.layers.0.self_attn.qkv_proj.weight"
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


def test_a_tensor_does_not_depend_on_what_was_asked_before():
    """The seed and the name alone decide."""
    first, second = RandomWeights(7), RandomWeights(7)
    first.floats(EMBEDDING, (8, 8))
    one, other = (weights.int4(QKV, (64, 64), block_size=32).floats() for weights in (first, second))
    np.testing.assert_array_equal(one, other)
    assert not np.array_equal(one, RandomWeights(8).int4(QKV, (64, 64), block_size=32).floats())
    assert not np.array_equal(one, first.int4(O_PROJ, (64, 64), block_size=32).floats())


@pytest.mark.parametrize("block_size", [32, 128])
def test_random_weights_keep_the_size_of_what_passes_through(block_size):
    """Outputs are as large as inputs and have no common part, even if the inputs have one."""
    matrix = RandomWeights(0).int4(O_PROJ, (2048, 1024), block_size=block_size).floats()
    mixed = matrix @ np.random.default_rng(0).standard_normal(1024).astype(np.float32)
    assert np.std(mixed) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(mixed)) < 0.1
    assert abs(np.mean(matrix @ np.ones(1024, np.float32))) < 0.1


def test_random_weights_say_neither_bytes_nor_controls():
    """Their rows of the output layer are 0, all others are not."""
    head = RandomWeights(0).int4(LM_HEAD, (TINY.vocab_size, TINY.hidden_size), block_size=32).floats()
    silent = np.flatnonzero(~head.any(axis=1))
    np.testing.assert_array_equal(silent, [*range(259), *range(TINY.first_control_id, TINY.vocab_size)])


def test_a_chain_leads_from_each_token_to_the_next():
    """With the residual stream untouched the largest logit is the successor's."""
    shape = (TINY.vocab_size, TINY.hidden_size)
    chain = [449, 300, 10, 400, 455]
    scripted = ScriptedWeights(RandomWeights(0), chain)
    logits = scripted.floats(EMBEDDING, shape)[chain[:-1]] @ scripted.int4(LM_HEAD, shape, block_size=32).floats().T
    assert logits.argmax(axis=1).tolist() == chain[1:]
    assert not scripted.int4(O_PROJ, (64, 64), block_size=32).floats().any()


def test_a_chain_with_a_token_twice_is_refused():
    """One token cannot have two successors."""
    with pytest.raises(ValueError, match="only once"):
        ScriptedWeights(RandomWeights(0), [1, 2, 1])


def test_given_weights_of_another_name_or_shape_are_refused():
    """The tensor at fault is named."""
    weights = GivenWeights({EMBEDDING: np.zeros((4, 4), np.float32)})
    with pytest.raises(ValueError, match=f"lack {LM_HEAD}"):
        weights.int4(LM_HEAD, (4, 4), block_size=32)
    with pytest.raises(ValueError, match=EMBEDDING):
        weights.floats(EMBEDDING, (5, 4))


def test_safetensors_are_read_as_float32(tmp_path):
    """Half and single precision, any shape."""
    header = (
        b'{"__metadata__":{"format":"np"},"half":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},'
        b'"single":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}'
    )
    body = np.float16([1.5, -2]).tobytes() + np.float32(0.1).tobytes()
    path = tmp_path / "some.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    tensors = safetensors.read(path)
    np.testing.assert_array_equal(tensors["half"], [[1.5], [-2]])
    assert tensors["single"] == np.float32(0.1)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("content", [b"", b"12345678901234", struct.pack("<Q", 2) + b"[]", b"PK\3\4" * 9])
def test_other_files_are_no_safetensors(tmp_path, content):
    """Garbage is refused with the name of the file."""
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.bin"):
        safetensors.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"hidden_size": 60},
        {"hidden_size": 32},
        {"kv_heads": 3},
        {"vocab_size": 100},
        {"context_tokens": 1024},
        {"long_factors": ()},
        {"short_factors": (1.0,), "long_factors": (1.0,)},
    ],
)
def test_sizes_that_do_not_fit_one_another_are_refused(change):
    """The field at fault is named."""
    with pytest.raises(ValueError, match=next(iter(change)).split("_")[0]):
        dataclasses.replace(TINY, **change)


def test_the_full_shape_is_the_published_one():
    """3.8 billion parameters."""
    width = FULL.hidden_size
    layer = width * (width + 2 * FULL.kv_size) + width * width + 3 * width * FULL.mlp_size
    assert 2 * FULL.vocab_size * width + FULL.layers * layer == pytest.approx(3.82e9, rel=0.01)


@pytest.mark.parametrize(("name", "shape"), [("vision.fc1.w", (256, 1024)), ("vision.patch", (512, 3, 14, 14))])
def test_random_vision_weights_keep_the_size_of_what_passes_through(name, shape):
    """Matrices are [inputs, outputs], patches [outputs, …]; norms and biases change nothing."""
    tensor = RandomWeights(0).floats(name, shape)
    inputs = tensor.reshape(len(tensor), -1).shape[1] if name.endswith("patch") else len(tensor)
    mixed = np.random.default_rng(0).standard_normal(inputs) @ tensor.reshape(-1, inputs).T
    assert np.std(mixed) == pytest.approx(1, abs=0.1)
    assert not RandomWeights(0).floats("vision.fc1.b", (64,)).any()
    assert (RandomWeights(0).floats("vision.ln.w", (64,)) == 1).all()


def test_the_full_vision_part_is_the_published_one():
    """0.3 billion parameters in 23 layers, of which each has attention and an MLP four times as wide."""
    clip = FULL_VISION.vision
    assert clip.layers * 12 * clip.width**2 == pytest.approx(0.29e9, rel=0.01)
    assert clip.positions == 577
