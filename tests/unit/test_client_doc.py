"""docs/client.md has every public name of edge_agent.client, and no other; old import paths lead there."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest

import edge_agent.client
from edge_agent.client import Access, EdgeClient, Handle, OrderHandle

PAGE = (Path(__file__).parents[2] / "docs/client.md").read_text()
NAMES = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))
INTERNAL = {"put", "finish", "placement", "payload", "uploads", "of", "addresses", "identity", "check", "checked"} | {
    "files",
    "secret",
    "context",
}
"""Between the client's own parts."""


def members(kind):
    return {name for each in kind.__mro__[:-1] for name in vars(each) if not name.startswith("_")} - INTERNAL


@pytest.mark.parametrize("name", edge_agent.client.__all__)
def test_every_public_name_stands_on_the_page(name):
    assert getattr(edge_agent.client, name)
    assert f"`{name}" in PAGE or f"# {name}" in PAGE


@pytest.mark.parametrize("kind", [EdgeClient, Access, Handle, OrderHandle])
def test_every_public_member_stands_on_the_page(kind):
    fields = {each.name for each in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    assert members(kind) | fields <= NAMES


def test_the_page_imports_nothing_else():
    for names in re.findall(r"from edge_agent.client import (.*)", PAGE):
        assert set(names.split(", ")) <= set(edge_agent.client.__all__)
    assert "edge_agent.client." not in PAGE.replace("`edge_agent.client`", "")


@pytest.mark.parametrize(
    ("module", "name"), [("edge_agent.mqtt.client", "EdgeClient"), ("edge_agent.mqtt.payloads", "Chunk")]
)
def test_where_version_0_1_0_had_a_name_it_is_found_with_a_warning(module, name):
    sys.modules.pop(module, None)
    with pytest.warns(DeprecationWarning, match=r"has moved to edge_agent\.client"):
        found = importlib.import_module(module)
    assert getattr(found, name) is getattr(edge_agent.client, name)
