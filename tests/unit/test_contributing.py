"""What contributors are told, and what hosted CI and hooks run, is what the project has."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import edge_agent

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
HOSTED = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in HOSTED["jobs"].values() for step in job["steps"]]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
CODE = re.compile(r"`([^`\n]+)`")
INSIDE = re.compile(r"[\w./-]+(?:\.(?:py|sql|toml|txt|md|json|service|example)|/)")
MADE_UP = {"facts.py", "prompt.py", "jobs/migrate_N.sql", "migrate_N.sql"}
"""Names of files that stand for any of several."""


def test_the_hooks_before_a_commit_run_what_make_check_runs():
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    ours = [hook["entry"] for repo in hooks if repo["repo"] == "local" for hook in repo["hooks"]]
    assert ours == [line.strip().replace("$(VENV)", ".venv") for line in recipe.splitlines()]


def test_hosted_ci_tries_the_oldest_python_and_may_only_read():
    versions = HOSTED["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert f">={versions[0]}" == PROJECT["requires-python"]
    assert HOSTED["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in HOSTED["jobs"].values())


def test_hosted_ci_runs_what_there_is():
    runs = [step["run"] for step in STEPS if "run" in step]
    assert ".ci/run" in runs
    assert {target for run in runs for target in re.findall(r"\bmake ([a-z]+)", run)} <= TARGETS
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v[0-9]+", step["uses"]) for step in STEPS if "uses" in step)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda form: form.stem)
def test_forms_of_issues_are_such(form):
    read = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert read.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= read.keys()
    ids = [field["id"] for field in read["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    assert {field["type"] for field in read["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_texts_name_targets_that_exist(page):
    named = {target for code in CODE.findall(page.read_text()) for target in re.findall(r"^make ([a-z]+)", code)}
    assert named <= TARGETS


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name in {"architecture.md", "CONTRIBUTING.md"} or page.parent.name == "decisions"],
    ids=lambda page: page.name,
)
def test_the_texts_name_files_that_exist(page):
    """From the top of the checkout or in edge_agent/, as architecture.md says of itself."""
    named = {code for code in CODE.findall(page.read_text()) if INSIDE.fullmatch(code)} - MADE_UP
    there = {name for name in named if any((folder / name).exists() for folder in (ROOT, ROOT / "edge_agent"))}
    assert named - there - {"queue.db", "dist/"} == set()
    assert named or page.name == "README.md" or page.parent.name == "decisions"


def test_every_folder_stands_in_the_architecture():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "edge_agent").glob("*/__init__.py")} - {"engine", "synth"}
    assert {name for name in folders if f"| `{name}/` |" not in text} == set()


def test_every_decision_stands_in_the_list_and_is_short():
    folder = ROOT / "docs/decisions"
    records = sorted(folder.glob("0*.md"))
    assert re.findall(r"\]\((0[^)]*)\)", (folder / "README.md").read_text()) == [record.name for record in records]
    assert [record.name for record in records if len(record.read_text().splitlines()) > 40] == []


def test_the_version_is_one():
    assert edge_agent.__version__ == PROJECT["version"]
