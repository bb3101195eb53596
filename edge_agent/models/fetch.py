"""Fetching a build: the parent's end of the child that talks with the hub, and what the two say to each other."""

import importlib.util
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.outlet import for_children
from edge_agent.models.build_store import BuildStore
from edge_agent.models.catalogue import Variant
from edge_agent.models.manifest import Manifest
from edge_agent.settings.load import ModelsSection

POLL_MS = 200
"""How often a pull that says nothing looks whether it shall stop."""
READ_BYTES = 65_536
LINE_BYTES_MAX = 65_536
EXIT_S = 10.0
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1"}
"""Read by the hub's library when it is loaded; else it asks the hub on the side which programs call it."""
TELLS_S = 900.0
"""How long it may take to look at the machine's libraries, or to read through a build of gigabytes; a pull tells more
often how far it is."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where builds are fetched from.

    token_file: read by the child alone; its content stands in no command line, no log, no message.
    attempts: tries in a row that bring nothing before a pull gives up; backoff_s is the pause before the second and
    doubles each time. timeout_s: silence after which a connection counts as dead.
    """

    url: str = "https://huggingface.co"
    token_file: Path | None = None
    attempts: int = 6
    backoff_s: float = 1.0
    timeout_s: float = 30.0

    @classmethod
    def of(cls, models: ModelsSection, environ: Mapping[str, str] = os.environ) -> "Hub":
        """Return the hub the settings name; when they name none, the one of HF_ENDPOINT, as other programs use it."""
        named = "hub_url" in models.model_fields_set
        url = models.hub_url if named else environ.get("HF_ENDPOINT") or models.hub_url
        return cls(url=url.rstrip("/"), token_file=models.token_file)

    @property
    def address(self) -> str:
        """The URL as messages show it: without a user's name and password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """What the child shall do; it reads it from its standard input."""

    folder: Path
    quota_bytes: int | None
    margin_bytes: int
    variant: Variant
    hub: Hub


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is: `done_bytes` of `total_bytes`, with what earlier pulls have brought.

    waiting: another process, `pid`, pulls the same build. asking: what there is. checking: what an earlier pull left.
    """

    phase: Literal["waiting", "asking", "checking", "fetching"]
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    pid: int = 0
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class Refused:
    """The pull failed: an EdgeAgentError on its way to the parent."""

    code: Code
    message: str
    retry_after_s: float | None = None
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True)
class Done:
    """The build is in the store."""

    kind: Literal["done"] = "done"


ORDER = TypeAdapter(FetchOrder)
SAID: TypeAdapter[PullProgress | Refused | Done] = TypeAdapter(PullProgress | Refused | Done)


def is_current(manifest: Manifest, variant: Variant) -> bool:
    """Whether a build in the store is the one the catalogue means; a revision that moves is whatever is here."""
    return not variant.pinned or manifest.revision is None or manifest.revision.startswith(variant.revision)


def fetch(
    store: BuildStore,
    variant: Variant,
    *,
    hub: Hub,
    progress: Callable[[PullProgress], None],
    stop: threading.Event,
) -> Path:
    """Bring a variant into the store and return its folder; at once when it is there.

    Blocks its thread, on which `progress` is called. What has arrived when it ends early, by whatever end, is kept, and
    the next call goes on from there. Raises EdgeAgentError: CANCELED when `stop` was set, STORAGE_FULL, else
    MODEL_MISSING with what to do.
    """
    if (here := present(store, variant)) is not None:
        return here
    if importlib.util.find_spec("huggingface_hub") is None:
        lacking = "huggingface_hub is not installed; install it with: pip install 'edge-slm-agent[agent]'"
        raise EdgeAgentError(Code.MODEL_MISSING, lacking)
    order = FetchOrder(store.folder.absolute(), store.quota_bytes, store.margin_bytes, variant, hub)
    command = [sys.executable, "-m", "edge_agent.models.hub", "--parent", str(os.getpid())]
    environ = os.environ | QUIET | {"HF_ENDPOINT": hub.url}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=for_children(), env=environ
    ) as child:
        try:
            _hand_over(child, ORDER.dump_json(order))
            for line in _lines(child, stop, variant):
                match SAID.validate_json(line):
                    case PullProgress() as told:
                        progress(told)
                    case Refused(code, message, retry_after_s):
                        raise EdgeAgentError(code, message, retry_after_s=retry_after_s)
                    case Done():
                        return store.path(variant.name)
            status = child.wait(EXIT_S)
        finally:
            child.kill()
    how = signal.Signals(-status).name if status < 0 else f"exit {status}"
    raise EdgeAgentError(
        Code.MODEL_MISSING, f"the pull of {variant.name} ended with {how}; what has arrived is kept: run it again"
    )


def present(store: BuildStore, variant: Variant) -> Path | None:
    """Return a variant's folder when it is in the store, whole and of the catalogue's revision."""
    try:
        return store.path(variant.name) if is_current(store.manifest(variant.name), variant) else None
    except EdgeAgentError:  # not here, or damaged: what a pull mends
        return None


def _hand_over(child: "subprocess.Popen[bytes]", order: bytes) -> None:
    assert child.stdin is not None  # noqa: S101 - asked for above
    try:
        child.stdin.write(order)
        child.stdin.close()
    except BrokenPipeError:  # it is gone, which the end of its output says too
        pass


def _lines(child: "subprocess.Popen[bytes]", stop: threading.Event, variant: Variant) -> Iterator[bytes]:
    """Yield what the child says, until it ends. Raises EdgeAgentError CANCELED once `stop` is set."""
    assert child.stdout is not None  # noqa: S101 - asked for above
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    rest = b""
    while not stop.is_set():
        if not poll.poll(POLL_MS):
            continue
        piece = os.read(child.stdout.fileno(), READ_BYTES)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise RuntimeError("the fetching child sends a line without end")
        yield from lines
    raise EdgeAgentError(
        Code.CANCELED, f"the pull of {variant.name} was stopped; what has arrived is kept and continued next time"
    )
