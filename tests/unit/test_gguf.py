"""GGUF files: what we write, what is read of them, and how a folder with one is known."""

import struct
from pathlib import Path

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine.backend import backend_of
from edge_agent.engine.llamacpp.gguf import gguf_file, read_facts
from edge_agent.models.memory import read_build
from edge_agent.synth import TINY, TINY_VISION, build_text


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return gguf_file(build_text(tmp_path_factory.mktemp("gguf") / "tiny", backend="llamacpp"))


def test_a_file_says_what_it_is(file):
    facts = read_facts(file)
    assert facts["general.architecture"] == "phi3"
    assert facts["phi3.block_count"] == TINY.layers
    assert facts["phi3.rope.scaling.original_context_length"] == TINY.original_context_tokens
    assert facts["tokenizer.ggml.add_bos_token"] is True
    assert facts["phi3.rope.freq_base"] == TINY.rope_theta
    assert "<|assistant|>" in facts["tokenizer.chat_template"]
    assert "tokenizer.ggml.tokens" not in facts


def test_a_torn_file_is_refused_wherever_it_ends(file, tmp_path):
    """By a ValueError, also where a list is cut, and never by reading on for ever."""
    content = file.read_bytes()
    torn = tmp_path / "torn.gguf"
    for end in (0, 3, 4, 20, 23, 24, 30, 100, 500, 1000):
        torn.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"GGUF|early|type|long"):
            read_facts(torn)
    torn.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + content[8:])
    with pytest.raises(ValueError, match="no GGUF file of version"):
        read_facts(torn)


def _file(tmp_path, *facts, count=None):
    """A file that holds these facts, or says that it holds so many."""
    made = tmp_path / "made.gguf"
    made.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(facts) if count is None else count) + b"".join(facts))
    return made


def _text(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text


def _list(kind, length, content=b""):
    return _text(b"tokens") + struct.pack("<IIQ", 9, kind, length) + content


@pytest.mark.parametrize(
    ("facts", "count", "reason"),
    [
        ([], 4097, "no GGUF file of version"),
        ([_text(b"k", 2**20 + 1) + bytes(2**20 + 64)], None, "texts that are too long"),
        ([_text(b"k" * 600_000) + struct.pack("<IB", 0, 1)] * 2, None, "texts that are too long"),
        ([_text(b"k") + struct.pack("<I", 8) + _text(b"v" * 600_000)] * 2, None, "texts that are too long"),
        ([_list(0, 2**22 + 1)], None, "a list that is too long"),
        ([_list(8, 2**62, bytes(2**26))], None, "a list that is too long"),
        ([_list(9, 1)], None, "not known"),
    ],
    ids=["facts", "text", "names", "texts", "numbers", "texts in a list", "lists in a list"],
)
def test_what_a_file_says_of_its_size_is_not_believed(tmp_path, facts, count, reason):
    with pytest.raises(ValueError, match=reason):
        read_facts(_file(tmp_path, *facts, count=count))


def test_the_numbers_that_decide_about_memory_are_read(file):
    """By the file or its folder; of anything else nothing is known."""
    build = read_build(file, "llamacpp")
    assert build == read_build(file.parent, "llamacpp")
    assert build.weight_bytes == file.stat().st_size
    assert build.kv_values_per_token == 2 * TINY.layers * TINY.kv_size
    assert build.heads == TINY.heads
    assert read_build(Path(__file__), "llamacpp") is None
    assert read_build(Path(__file__).parent, "llamacpp") is None


def test_a_gguf_file_and_a_folder_with_one_are_llamacpps(file, tmp_path):
    """Of several in a folder nobody knows which is meant."""
    assert backend_of(file) == backend_of(file.parent) == "llamacpp"
    assert gguf_file(file.parent) == gguf_file(file) == file
    for name in ("q4_0.gguf", "q8_0.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(EdgeAgentError, match=r"holds 2 files \*\.gguf; point models\.serve\.path") as raised:
        gguf_file(tmp_path)
    assert raised.value.code is Code.MODEL_MISSING


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    """Q4_0 has a scale for each 32 weights, and llama.cpp has no Phi-3.5-vision; nothing is left behind."""
    with pytest.raises(ValueError, match="block_size must be a multiple of 32"):
        build_text(tmp_path / "blocks", backend="llamacpp", block_size=16)
    with pytest.raises(ValueError, match="leave vision out"):
        build_text(tmp_path / "vision", backend="llamacpp", shape=TINY_VISION)
    assert not list(tmp_path.iterdir())
