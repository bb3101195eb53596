"""What llama.cpp's backend refuses, and how its words agree with the other backends'; the rest is in the contract."""

import importlib.util
import json
import os
import random
from pathlib import Path

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.engine import backend
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.llamacpp.gguf import gguf_file
from edge_agent.engine.messages import Turn
from edge_agent.synth import build_text, tokenizer

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def library():
    """The module that binds the library."""
    if importlib.util.find_spec("xllamacpp") is None:
        lacking = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        lacking("xllamacpp is not installed; install it with: pip install -e '.[llamacpp]'")
    from edge_agent.engine.llamacpp import library as llamacpp_library

    yield llamacpp_library
    llamacpp_library.library.cache_clear()


@pytest.fixture(scope="module")
def folder(library, tmp_path_factory):
    return build_text(tmp_path_factory.mktemp("gguf") / "tiny", backend="llamacpp")


@pytest.fixture
def load():
    return lambda path, **told: backend.find("llamacpp")(ModelSpec(path, "llamacpp", 512, 1, threads=1, **told))


def refused(load, path, match, **told):
    with pytest.raises(EdgeAgentError, match=match) as raised:
        load(path, **told)
    return raised.value.code


@pytest.mark.parametrize(
    "told", [{"device": "gpu"}, {"options": {"cache_type": "q4_0"}}, {"options": {"n_gpu_layers": "99"}}]
)
def test_a_device_or_an_option_that_is_not_known_is_refused(load, folder, told):
    assert refused(load, folder, "runs on cpu here, with cache_type f32 or f16 and no other option", **told) is (
        Code.UNSUPPORTED
    )


def test_another_interface_is_noticed_before_it_is_called(library, load, folder, monkeypatch):
    """By the version, and by a default that lies elsewhere: a struct of another layout would be misread."""
    assert f'"xllamacpp=={library.VERSION}"' in Path("pyproject.toml").read_text(encoding="utf-8")
    library.library.cache_clear()
    monkeypatch.setattr(library, "version", lambda _package: "2027.1.1")
    assert refused(load, folder, r"xllamacpp 2027\.1\.1 is not the one known here; install") is Code.UNSUPPORTED
    monkeypatch.undo()
    params = library.ContextParams
    monkeypatch.setattr(library, "_DEFAULTS", {**library._DEFAULTS, params: {**library._DEFAULTS[params], "n_ctx": 7}})
    assert refused(load, folder, "is not the one known here; install") is Code.UNSUPPORTED


def test_a_file_that_is_no_model_is_refused_with_what_the_library_says(load, folder, tmp_path):
    torn = tmp_path / "torn.gguf"
    for content in (b"no model", gguf_file(folder).read_bytes()[:-5000]):
        torn.write_bytes(content)
        assert refused(load, torn, r"torn\.gguf cannot be loaded: llama\.cpp said: \w+") is Code.MODEL_ERROR


def changed(folder, tmp_path, template):
    """The file with another chat template, of the same length."""
    there, file = tokenizer.CHAT_TEMPLATE.encode(), tmp_path / "changed.gguf"
    file.write_bytes(
        gguf_file(folder).read_bytes().replace(there, f"{template}{{#".encode().ljust(len(there) - 2) + b"#}")
    )
    return file


def test_a_file_is_asked_by_its_own_template(library, folder, tmp_path):
    """Whatever the library makes of templates that it guesses at; one that cannot be read is refused."""
    from edge_agent.engine.llamacpp.file import GgufFile

    changed(folder, tmp_path, "<|user|>{{ messages[0].content.replace('on', 'off') }}<|end|>{{ bos_token }}")
    prompts = GgufFile(library.library(), tmp_path / "changed.gguf").prompts()
    ((ids,), _) = prompts.make([Turn("user", "is it on?")])
    words = prompts.tokenizer
    assert ids == words.encode("<|user|>is it off?<|end|><s>", begin=False)
    changed(folder, tmp_path, "{% if %}")
    with pytest.raises(EdgeAgentError, match="chat template cannot be read") as raised:
        GgufFile(library.library(), tmp_path / "changed.gguf").prompts()
    assert raised.value.code is Code.MODEL_ERROR


def test_a_file_without_a_template_goes_on_with_texts(library, folder, tmp_path):
    from edge_agent.engine.llamacpp.file import GgufFile

    file = tmp_path / "base.gguf"
    file.write_bytes(gguf_file(folder).read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templato"))
    prompts = GgufFile(library.library(), file).prompts()
    assert prompts.template is None
    ((ids,), _) = prompts.make([Turn("user", "the pump is")], template=False)
    assert ids == prompts.tokenizer.encode("the pump is", begin=True)


def test_conversations_are_cut_into_the_same_tokens_as_a_folders(library, folder, tiny_model):
    """Also where white space, bytes and what looks like a control token meet."""
    from edge_agent.engine.llamacpp.file import GgufFile
    from edge_agent.engine.text.detokenizer import Vocabulary
    from edge_agent.engine.text.prompt import PromptMaker

    ours, theirs = GgufFile(library.library(), gguf_file(folder)).prompts(), PromptMaker.read(tiny_model)
    pieces = Vocabulary.read(tiny_model)
    control = {each["id"] for each in json.loads((tiny_model / "tokenizer.json").read_text())["added_tokens"]}
    rng = random.Random(5)
    words = ["the ", "pump", " temperature", "word", "word1", "<|end|>", "<s>", "</s>", "<unk>", "<|assistant|>\n"]
    letters = "abcdefghijklmnopqrstuvwxyz      .,?!\n\t0123456789\u00fc\u00e9\u4e16\U0001f642<>|/"
    for _ in range(500):
        said = ["".join(rng.choices([*words, *letters], k=rng.randrange(40))) for _ in range(4)]
        turns = tuple(map(Turn, ("system", "user", "assistant", "user"), said))
        for template in (True, False):
            asked = turns if template else turns[:1]
            ((ids,), _), ((expected,), _) = (each.make(asked, template=template) for each in (ours, theirs))
            assert template or not control & set(ids[1:])
            if any("</s>" in turn.text for turn in asked):  # which the library obeys unless it is cut in two
                ids, expected = ([*map(pieces.piece, each)] for each in (ids, expected))
                ids, expected = b"".join(ids), b"".join(expected)
            assert ids == expected
