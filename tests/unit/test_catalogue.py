"""The catalogue: what is shipped, what users add, and what is refused."""

import pytest

from edge_agent.base.errors import SettingsError
from edge_agent.models import catalogue

FAMILY = """
[[family]]
name = "ours"
parameters = 1
layers = 2
heads = 4
kv_heads = 4
head_size = 16
context_tokens = 8192
source = "us"
"""
VARIANT = """
[[variant]]
name = "ours-int4"
family = "ours"
backend = "onnx"
devices = ["cpu"]
repo = "us/ours"
precision = "int4"
weight_bytes = 100
source = "us"
"""


def read(tmp_path, *texts):
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.toml")
        files[-1].write_text(text)
    return catalogue.read(files)


def test_every_family_that_was_named_is_there_with_its_source():
    """And every build says where its facts are from."""
    shipped = catalogue.read()
    names = {family.name for family in shipped.family}
    assert names >= {"phi-3.5-mini", "phi-3.5-vision", "phi-3-mini-4k", "phi-3-mini-128k", "phi-3.5-moe"}
    assert {variant.family for variant in shipped.variant} == names
    assert all(each.source.startswith("https://") for each in (*shipped.family, *shipped.variant))


def test_hashes_that_are_known_are_of_pinned_revisions():
    """A hash of something that moves would refuse its next version."""
    known = [each for each in catalogue.read().variant if any(file.sha256 for file in each.files)]
    assert len(known) >= 4
    unpinned = {each.name for each in known if not each.pinned}
    assert unpinned == {"phi-3-mini-128k-onnx-cpu-int4"}  # its page gives the hash without a commit


def test_better_methods_rank_higher():
    """Only the order counts."""
    quality = {each.name: each.quality for each in catalogue.read().variant}
    ranked = ["openvino-fp16", "openvino-int8", "onnx-cpu-int4", "openvino-int4", "openvino-npu-int4-cw"]
    values = [quality[f"phi-3.5-mini-{name}"] for name in ranked]
    assert values == sorted(values, reverse=True)


def test_users_add_their_own_in_the_same_form(tmp_path):
    """And correct ours by its name."""
    mended = VARIANT.replace("ours-int4", "phi-3.5-mini-openvino-int4").replace('"ours"', '"phi-3.5-mini"')
    found = read(tmp_path, FAMILY + VARIANT, mended)
    assert [each.name for each in found.builds_of("ours")] == ["ours-int4"]
    assert found.builds_of("phi-3.5-mini-openvino-int4")[0].repo == "us/ours"
    assert len(found.variant) == len(catalogue.read().variant) + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[family]\n", r"0\.toml: not valid TOML"),
        ("[[model]]\n", r"0\.toml: unknown table 'model'"),
        ("family = 3\n", r"0\.toml: write \[\[family\]\] above each entry"),
        (FAMILY.replace("[[family]]", "[family]"), r"0\.toml: write \[\[family\]\] above each entry"),
        (FAMILY + VARIANT + "parallel = 0\n", "number 1: parallel: Input should be greater than 0"),
        (VARIANT, "no .*family.* is named ours"),
        (FAMILY + VARIANT.replace("onnx", "magic"), r"number 1: backend: .magic. is unknown; there is: onnx, "),
        (FAMILY + VARIANT.replace("us/ours", "../../etc"), "number 1: repo: String should match"),
        (FAMILY + VARIANT + 'folder = "a/../../b"\n', "number 1: folder: String should match"),
        (FAMILY + VARIANT + 'files = [{ name = "../x" }]\n', r"number 1: files\.0\.name: String should match"),
        (FAMILY + VARIANT + 'files = [{ name = "x", sha256 = "abc" }]\n', r"files\.0\.sha256: String should match"),
        (FAMILY + VARIANT + "colour = 1\n", "number 1: colour: Extra inputs"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, said):
    """A path that climbs, a hash that is none, a word nobody knows."""
    with pytest.raises(SettingsError, match=said):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_said(tmp_path):
    """With its name."""
    with pytest.raises(SettingsError, match=r"absent\.toml: No such file"):
        catalogue.read([tmp_path / "absent.toml"])
