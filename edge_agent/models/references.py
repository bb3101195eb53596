"""Holds what accelerators say against the processor's words, which are found out once for each build and library.

A device that passed its trial serves at once: the first answer never waits for a second load of the model. In an idle
moment the build is loaded once more, on the processor, in a child that is asked the same question and exits. What it
began with is kept, so every later trial compares before it serves. When the device had said something else it is set
aside now. A load that somebody waits for ends the child; it is tried again in the next idle moment.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edge_agent.beat import Beat
from edge_agent.engine.backend import ModelSpec
from edge_agent.engine.canary import unlike
from edge_agent.engine.messages import Canary
from edge_agent.engine.witness import DismissedError, Witness
from edge_agent.errors import EdgeAgentError
from edge_agent.log import get_logger
from edge_agent.models.affordable import CONTEXT_TOKENS, affordable
from edge_agent.models.catalogue import Catalogue
from edge_agent.models.choose import options_of
from edge_agent.models.known import Known
from edge_agent.models.memory import read_build
from edge_agent.models.runtimes import RUNS

LOOK_S, CALM_LOOKS = 5.0, 2
"""How often it is looked whether the machine is idle, and how often in succession it must be."""
ROOM_S = 60.0
"""How often it is looked whether there is room."""
GO_S = 5.0
"""A child that is killed is gone after so long, and its memory free."""
STOP_S = 5.0
IDLE = "waits for an idle moment"
AGREES = "it begins as on the processor"

log = get_logger()


@dataclass(frozen=True, slots=True)
class Compared:
    """Whether what a served model says where it runs was held against the processor's words, or why not (yet)."""

    variant: str
    backend: str
    device: str
    used: bool
    reason: str


@dataclass(frozen=True, slots=True)
class _Open:
    """What was heard on a device and is to be compared."""

    spec: ModelSpec
    canary: Canary
    heard: str


class References:
    """`heard` and the readings are for any thread, `make_way` for whoever is about to load something.

    `known` keeps the words; None: there are no trials. `busy` says why a load would disturb now, empty when it would
    not; `room_bytes` how much memory may be taken, `total_bytes` of how much, None when nobody knows. `differs` is told
    of a model, where it runs and what is wrong there; `changed` that there is news.
    """

    def __init__(
        self,
        *,
        known: Known | None,
        catalogue: Catalogue,
        busy: Callable[[], str],
        room_bytes: Callable[[], int | None],
        total_bytes: int | None,
        differs: Callable[[str, ModelSpec, str], None],
        changed: Callable[[], None],
    ) -> None:
        self._known = known
        self._catalogue = catalogue
        self._busy = busy
        self._room_bytes = room_bytes
        self._total_bytes = total_bytes
        self._differs = differs
        self._changed = changed
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._compared: dict[str, Compared] = {}
        self._witness: Witness | None = None
        self._calm = 0
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self.beat = Beat("references")
        self._thread: threading.Thread | None = None

    def compared(self) -> Mapping[str, Compared]:
        """Return what became of it, by served model; those on the processor are not compared with anything."""
        with self._lock:
            return dict(self._compared)

    @property
    def held_bytes(self) -> int:
        """What a child holds that makes way when it must."""
        witness = self._witness
        return 0 if witness is None else witness.held_bytes

    def heard(self, model: str, spec: ModelSpec, heard: str) -> None:
        """Note what a model began with at its trial."""
        canary = spec.canary
        if self._known is None or canary is None:
            return
        if spec.device == "cpu":
            self._known.keep(spec.path, spec.backend, canary.prompt, heard)
            with self._lock:
                self._open.pop(model, None)
                self._compared.pop(model, None)
            return
        if canary.reference:
            self._note(model, spec, used=True, reason=AGREES)
            return
        with self._lock:
            self._open[model], self._calm = _Open(spec, canary, heard), 0
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="references", daemon=True)
                self._thread.start()
        self._note(model, spec, used=False, reason=IDLE)
        self._wake.set()

    def make_way(self) -> None:
        """End the child, if there is one, and wait until its memory is free; no other begins soon."""
        with self._lock:
            self._calm, witness = 0, self._witness
        if witness is not None:
            witness.dismiss(GO_S)

    def stop(self) -> None:
        """End, with the child."""
        with self._lock:
            self._stopping.set()
        self._wake.set()
        self.make_way()
        if self._thread is not None:
            self._thread.join(STOP_S)

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = self._turn()
            if wait_s is None:
                self.beat.over()  # until there is something to compare
            else:
                self.beat(wait_s)
            self._wake.wait(wait_s)
            self._wake.clear()
            self.beat()
        self.beat.over()

    def _turn(self) -> float | None:
        """Compare what can be compared now; return when to look again, in seconds, None when nothing is open."""
        with self._lock:
            waiting = dict(self._open)
        able = {model: found for model, each in waiting.items() if (found := self._affordable(model, each))}
        if not able:
            return ROOM_S if waiting else None
        busy = self._busy()
        for model in able:
            self._note(model, waiting[model].spec, used=False, reason=busy or IDLE)
        with self._lock:
            self._calm = 0 if busy else self._calm + 1
            if self._calm < CALM_LOOKS:
                return LOOK_S
            self._calm = 0
            model, (spec, limit_bytes) = next(iter(able.items()))
            self._witness = witness = Witness(spec, limit_bytes=limit_bytes)
        try:
            self._ask(model, waiting[model], witness)
        finally:
            self._witness = None
        return LOOK_S

    def _affordable(self, model: str, each: _Open) -> tuple[ModelSpec, int] | None:
        """Return what to load on the processor, and within how much memory; None when that cannot be had, as noted."""
        options = self._options(each.spec)
        spec = replace(
            each.spec,
            device="cpu",
            context_tokens=min(CONTEXT_TOKENS, each.spec.context_tokens),
            parallel=1,
            options=options or {},
            canary=replace(each.canary, reference=""),
        )
        found = affordable(
            read_build(spec.path, spec.backend),
            runs=options is not None,
            context_tokens=spec.context_tokens,
            room_bytes=self._room_bytes(),
            total_bytes=self._total_bytes,
        )
        if found.reason:
            self._note(model, each.spec, used=False, reason=found.reason)
            return None
        return spec, found.limit_bytes

    def _options(self, spec: ModelSpec) -> Mapping[str, str] | None:
        """Return the settings with which a build runs on the processor; None when it does not."""
        named = (spec.variant, spec.backend)
        variant = next((each for each in self._catalogue.variant if (each.name, each.backend) == named), None)
        if variant is None:  # a folder of somebody's own
            return {}
        runs = "cpu" in variant.devices and (variant.backend, "cpu") in RUNS
        return options_of(variant, "cpu") if runs else None

    def _ask(self, model: str, each: _Open, witness: Witness) -> None:
        begun_s, variant = time.monotonic(), each.spec.variant
        log.info("reference.asked", model=model, variant=variant, limit_bytes=witness.limit_bytes)
        try:
            reference = witness.ask(self.beat)
        except DismissedError:
            log.info("reference.dismissed", model=model, variant=variant, reason="something is to be loaded")
            return
        except EdgeAgentError as error:
            log.warning("reference.missing", model=model, variant=variant, reason=error.message)
            self._close(model, each, used=False, reason=f"on the processor: {error.message}")
            return
        log.info("reference.known", model=model, variant=variant, took_s=round(time.monotonic() - begun_s, 1))
        assert self._known is not None  # noqa: S101 - nothing is open without it
        self._known.keep(each.spec.path, each.spec.backend, each.canary.prompt, reference)
        if not reference:
            self._close(model, each, used=False, reason="it says nothing on the processor")
            return
        unlikeness = unlike(each.canary.prompt, each.heard, reference)
        if self._close(model, each, used=True, reason=unlikeness or AGREES) and unlikeness:
            self._differs(model, each.spec, unlikeness)

    def _close(self, model: str, each: _Open, *, used: bool, reason: str) -> bool:
        """Note the end of a comparison; return False when the model has come to run elsewhere meanwhile."""
        with self._lock:
            if self._open.get(model) is not each:
                return False
            del self._open[model]
        self._note(model, each.spec, used=used, reason=reason)
        return True

    def _note(self, model: str, spec: ModelSpec, *, used: bool, reason: str) -> None:
        fresh = Compared(spec.variant or spec.path.name, spec.backend, spec.device, used, reason)
        with self._lock:
            news = self._compared.get(model) != fresh
            self._compared[model] = fresh
        if news:
            self._changed()
