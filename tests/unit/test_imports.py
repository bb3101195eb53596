"""Who may know whom: imports point downward, and heavy libraries stay in the processes they are for."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import paho.mqtt.client
import pytest

from edge_agent.mqtt.sockets import Paho

ROOT = Path(__file__).resolve().parents[2]

P = "edge_agent."
LAYERS = (
    ("base", "service.notify"),
    ("engine.context",),
    ("engine.onnx.context", "engine.facts", "engine.registry", "engine.batching.prefill", "engine.llamacpp.gguf"),
    ("settings", "jobs"),
    ("images",),
    ("protocol",),
    ("mqtt", "engine"),
    ("engine.text", "engine.guides", "engine.selftest"),
    ("engine.answering",),
    ("engine.batching",),
    ("engine.onnx", "engine.openvino", "engine.llamacpp", "engine.hf", "engine.openai"),
    ("engine.child", "engine.devices"),
    ("engine.hosting",),
    ("models",),
    ("health", "client", "mqtt.client"),
    ("serving", "watch"),
    ("running", "control", "integrations"),
    ("agent",),
    ("service", "bench", "fleet", "simulator"),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
"""The folders of edge_agent from the bottom up: a module imports from its own layer and from those below.

Some modules stand apart from their folders. `service.notify` needs nothing and everybody may tell the service manager.
What is known of backends without loading any (`engine.registry`, each folder's `facts`) needs no more, and the settings
ask it. `engine.child` is the engines' program, and so above all that it loads, as is `engine.devices`; the rest of its
folder is what every backend stands on. `mqtt.client` is where programs of version 0.1.0 look for the client.
"""

APART = ("hardware", "edge_agent.synth", "edge_agent.mqtt.private_broker")
"""Parts that know nothing of the rest; any layer may use them."""

BACKENDS = frozenset(
    {"llguidance", "onnxruntime", "onnxruntime_genai", "openvino", "openvino_genai"}
    | {"torch", "transformers", "mlx", "mlx_lm", "xllamacpp"}
)
BACKEND_MODULES = tuple(
    f"edge_agent.engine.{name}" for name in ("batching.lane_", "hf.", "llamacpp.", "onnx.", "openai.", "openvino.")
)
HEAVY = (
    BACKENDS
    | {"http.server", "prometheus_client"}
    | {"numpy", "PIL", "huggingface_hub", "httpx2", "typer", "rich", "onnx", "tokenizers"}
)


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in ("edge_agent", "hardware") for file in (ROOT / package).rglob("*.py")}


def imports(name):
    """Return what a module imports, wherever in it: modules, and of ours the module that holds the name."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide who knows whom"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in FILES else node.module for member in members}
    return found


GRAPH = {name: imports(name) for name in FILES}


def inside(name, *parents):
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def layer(name):
    """Return a module's layer, by its longest name there; None for packages, and for parts that stand apart."""
    if inside(name, *APART) or FILES[name].name == "__init__.py":
        return None
    if name.endswith(".facts"):
        name = f"{P}engine.facts"
    matches = [(len(each), level) for level, names in enumerate(LAYERS) for each in names if inside(name, P + each)]
    assert matches, f"{name} stands in no layer; say in LAYERS where it belongs"
    return max(matches)[1]


def importers(*modules):
    return {name for name, used in GRAPH.items() if any(inside(each, *modules) for each in used)}


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_downward(name):
    own = layer(name)
    ours = {each for each in GRAPH[name] if each in FILES}
    if own is not None:
        upward = {each for each in ours if (theirs := layer(each)) is not None and theirs > own}
        assert not upward, f"{name} knows of {upward}, which stand above it"


def test_nothing_imports_in_circles():
    graph = {name: {each for each in used if each in FILES} for name, used in GRAPH.items()}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("part", APART)
def test_parts_that_stand_apart_import_nothing_of_ours(part):
    for name in FILES:
        if inside(name, part):
            known = {each for each in GRAPH[name] if each in FILES and not inside(each, part, "hardware.files")}
            assert known <= {"edge_agent"}, f"{name} knows of {known}"


def test_no_two_classes_have_one_name():
    """Who reads a name, or searches for it, finds one thing."""
    names = Counter(
        node.name
        for name, file in FILES.items()
        if inside(name, "edge_agent")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("sqlite3", {"edge_agent.jobs.database"}),
        ("paho", {f"edge_agent.mqtt.{name}" for name in ("link", "flow", "packets", "sockets")}),
        ("typer", {name for name in FILES if inside(name, "edge_agent.cli", "edge_agent.synth")}),
        ("rich", {name for name in FILES if inside(name, "edge_agent.cli")}),
        ("PIL", {"edge_agent.images.decoder_child", "edge_agent.engine.batching.preprocess"}),
        ("prometheus_client", {"edge_agent.integrations.prometheus"}),
        ("huggingface_hub", {"edge_agent.models.remote"}),
        ("httpx2", {"edge_agent.models.remote", "edge_agent.engine.openai.server"}),
    ],
)
def test_a_library_has_one_owner(library, owners):
    assert importers(library) <= owners


def test_engine_libraries_are_known_to_their_backends_folder_alone():
    """And those folders to nobody by name: the child finds them through the registry."""
    backends = {name for name in FILES if name.startswith(BACKEND_MODULES) and layer(name) > layer(f"{P}settings.load")}
    assert importers(*BACKENDS) <= backends | {name for name in FILES if inside(name, "edge_agent.synth")}
    assert importers(*backends) <= {"edge_agent.engine.child"} | backends
    finders = {name for name in FILES if "backend.find(" in FILES[name].read_text(encoding="utf-8")}
    assert finders <= {"edge_agent.engine.child"}


@pytest.mark.parametrize("entry", ["edge_agent.agent.lifecycle", "edge_agent.models.fetch", "edge_agent.client"])
def test_a_long_living_parent_loads_nothing_heavy(entry):
    """It keeps the agent small, and native code out of the process that holds the queue and the connection."""
    program = f"import sys, {entry}; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


BASE = ("edge_agent.client", *(f"edge_agent.cli.{verb}" for verb in ("submit", "acl", "fleet", "jobs", "status")))
"""What works where the base distribution alone is installed."""


@pytest.mark.parametrize("entry", BASE)
def test_what_a_requester_uses_stands_on_the_base_distribution(entry):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in project["dependencies"]}
    ours, todo = set(), [entry]
    while todo:
        ours.add(name := todo.pop())
        todo += (GRAPH[name] & FILES.keys()) - ours
    used = {each.partition(".")[0] for name in ours for each in GRAPH[name]}
    theirs = used - sys.stdlib_module_names - {"edge_agent", "hardware", "pydantic_core"}
    assert {"paho_mqtt" if each == "paho" else each for each in theirs} <= named


def test_what_programs_import_opens_no_database_and_reads_no_settings():
    program = "import sys, edge_agent.client; print(*sorted({'sqlite3', 'pydantic_settings'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", [name for name in vars(Paho) if name.startswith("_") and not name.endswith("__")])
def test_what_is_overridden_of_paho_is_there(name):
    """Its private methods may change with any minor version: pyproject.toml names those that were seen."""
    assert not callable(vars(Paho)[name]) or callable(getattr(paho.mqtt.client.Client, name))


def test_a_verb_loads_no_other(tmp_path):
    """On a small device all of them take seconds."""
    program = (
        "import atexit, sys; from edge_agent.cli.app import VERBS, app\n"
        "loaded = lambda verb: f'edge_agent.cli.{verb}' in sys.modules\n"
        "atexit.register(lambda: print(*(verb for verb in VERBS if loaded(verb))))\n"
        f"app(['status', '--state-dir', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "status"
