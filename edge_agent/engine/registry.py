"""The backends there are: ours, one line each, and those that installed packages bring.

A package brings one by an entry point of the group `edge_agent.backends`, which names its BackendFacts. Whoever may
install packages for this Python may run code in it anyway, so that trusts nobody new; but none takes the place of
another's name. Its library is loaded in children only, its record in the agent too.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from edge_agent.base.errors import Code, EdgeAgentError, SettingsError
from edge_agent.engine.facts import BackendFacts, DeviceFacts

GROUP = "edge_agent.backends"
_OURS = {
    "onnx": "edge_agent.engine.onnx.facts:FACTS",
    "openvino": "edge_agent.engine.openvino.facts:FACTS",
    "transformers": "edge_agent.engine.hf.facts:TRANSFORMERS",
    "llamacpp": "edge_agent.engine.llamacpp.facts:FACTS",
    "mlx": "edge_agent.engine.hf.facts:MLX",
    "openai": "edge_agent.engine.openai.facts:FACTS",
}
"""In the order in which a folder's files are tried."""


@cache
def backends() -> Mapping[str, BackendFacts]:
    """Return all records by name. Raises SettingsError for a package whose record cannot be taken."""
    found = {name: _record(EntryPoint(name, value, GROUP)) for name, value in _OURS.items()}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        try:
            if entry.name in {*found, "auto"}:
                raise ValueError("there is one of that name")  # noqa: TRY301 - one way out for all faults
            found[entry.name] = _record(entry)
        except Exception as error:
            package = entry.value if entry.dist is None else entry.dist.name
            said = f"package {package}: its backend {entry.name} cannot be taken: {type(error).__name__}: {error}"
            raise SettingsError(f"{said}; mend or uninstall the package") from error
    return found


def _record(entry: EntryPoint) -> BackendFacts:
    record = entry.load()
    if not isinstance(record, BackendFacts):
        raise TypeError(f"{entry.value} is no BackendFacts")
    return record


def names() -> tuple[str, ...]:
    """Return the names of the backends there are."""
    return tuple(backends())


def devices() -> tuple[str, ...]:
    """Return the names of all devices that some backend drives."""
    return tuple(dict.fromkeys(device for facts in backends().values() for device in facts.devices))


def facts_of(backend: str) -> BackendFacts:
    """Return a backend's record. Raises EdgeAgentError UNSUPPORTED when there is no such backend."""
    found = backends().get(backend)
    if found is None:
        there = ", ".join(names())
        raise EdgeAgentError(Code.UNSUPPORTED, f"no backend {backend!r} in this version; there is: {there}")
    return found


def on(backend: str, device: str) -> DeviceFacts:
    """Return how a backend drives a device; what holds of any where nobody knows more."""
    found = backends().get(backend)
    return DeviceFacts() if found is None else found.devices.get(device, DeviceFacts())


def driven() -> dict[tuple[str, str], DeviceFacts]:
    """Return every pair of backend and device that builds are chosen for."""
    return {
        (name, device): how
        for name, facts in backends().items()
        for device, how in facts.devices.items()
        if how.efficiency is not None
    }


def checked(name: str, known: tuple[str, ...]) -> str:
    """Return a name that is one of those known. Raises ValueError with the nearest for any other."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? there" if close else "there"
        raise ValueError(f"{name[:64]!r} is unknown; {hint} is: {', '.join(known)}")
    return name
