"""What the README and the example settings say is what the program does."""

from pathlib import Path

import pytest

from edge_agent import settings

ROOT = Path(__file__).parents[2]


def _keys():
    for section, info in settings.Settings.model_fields.items():
        yield from (f"{section}.{name}" for name in info.annotation.model_fields if name != "serve")
    yield from (f"models.serve[].{name}" for name in settings.ServeSection.model_fields)


@pytest.mark.parametrize("key", list(_keys()))
def test_every_setting_stands_in_the_readme_and_in_the_example(key):
    assert f"| `{key}` |" in (ROOT / "README.md").read_text()
    assert f"{key.rpartition('.')[2]} = " in (ROOT / "systemd/edge-agent.toml.example").read_text()


def test_the_readme_names_no_setting_that_does_not_exist():
    named = {line.split("`")[1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")}
    sections = tuple(f"{section}." for section in settings.Settings.model_fields)
    assert {key for key in named if key.startswith(sections)} == set(_keys())


def test_the_example_settings_are_valid_and_show_the_defaults():
    loaded = settings.load(ROOT / "systemd/edge-agent.toml.example", environ={})
    defaults = settings.Settings()
    for section in settings.Settings.model_fields.keys() - {"agent"}:
        assert getattr(loaded, section) == getattr(defaults, section)
