"""From what is wanted to a build on disk: asks the libraries, decides, fetches. One thread, beside everything else."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.signal import Signal
from edge_agent.engine.backend import NOWHERE, ModelSpec
from edge_agent.engine.hosting.engines import Engines
from edge_agent.engine.hosting.served import NotYetError
from edge_agent.engine.messages import Canary
from edge_agent.models import places
from edge_agent.models import runtimes as libraries
from edge_agent.models.build_store import BuildStore, in_words
from edge_agent.models.catalogue import Catalogue, Variant
from edge_agent.models.choose import Candidate, Decision, Measurement, WantedModel, choose
from edge_agent.models.compiled import keeping
from edge_agent.models.fallback import Fallbacks, SetAside
from edge_agent.models.fetch import TELLS_S, Hub, PullProgress, fetch
from edge_agent.models.load import Placed, prepare
from edge_agent.models.measurements import installed_libraries, measured
from edge_agent.models.memory import read_build
from edge_agent.models.reference_answers import Compared, ReferenceAnswers, compared
from edge_agent.models.runtimes import Runtimes
from edge_agent.models.upstream import BACKEND, DEVICE, upstream, whose
from edge_agent.settings.load import ServeSection, Settings
from hardware.machine import Machine
from hardware.probe import probe

RETRY_S = 60.0
"""How long after a failed fetch the next try begins; doubled up to RETRY_MOST_S."""
RETRY_MOST_S = 3600.0
STOP_S = 5.0
"""How long a fetch may take to hear that it shall stop; a library that is being asked ends with us."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class DecisionSources:
    """What a decision rests on, each asked anew: the machine, its libraries, the store, calibrations.

    `bandwidth` measures how many bytes of memory can be read per second, where that can be told. `fetch` brings a
    variant into the store and tells how far it is in words; None where that is not allowed. `compiled` is a folder
    for what libraries compile, which holds at most `compiled_bytes`. `known` is what builds are asked when they were
    loaded; None: nothing.
    """

    machine: Callable[[], Machine]
    bandwidth: Callable[[], float | None]
    runtimes: Callable[[], Runtimes]
    installed: Callable[[], Mapping[str, Path]]
    measured: Callable[[], Mapping[tuple[str, str], Measurement]]
    fetch: Callable[[Variant, Callable[[str], None], threading.Event], Path] | None
    compiled: Path
    compiled_bytes: int
    known: ReferenceAnswers | None = None


def sources(settings: Settings, root: Path = Path("/")) -> DecisionSources:
    """Return the machine whose files lie below `root`, the libraries here, the store and hub that the settings name."""
    store, hub = BuildStore.of(settings), Hub.of(settings.models)

    def bring(variant: Variant, tell: Callable[[str], None], stop: threading.Event) -> Path:
        return fetch(store, variant, hub=hub, progress=lambda progress: tell(_told(variant, progress)), stop=stop)

    return DecisionSources(
        machine=partial(probe, root),
        bandwidth=lambda: probe(root, measure_bandwidth=True).memory.bandwidth_bytes_per_s,
        runtimes=libraries.ask,
        installed=lambda: here(store),
        measured=lambda: measured(store.folder, probe(root), installed_libraries()),
        fetch=bring if settings.models.pull == "missing" else None,
        compiled=(settings.agent.cache_dir or settings.agent.state_dir) / "compiled",
        compiled_bytes=settings.models.compiled_bytes,
        known=ReferenceAnswers(settings.agent.state_dir) if settings.models.trial else None,
    )


def here(store: BuildStore) -> dict[str, Path]:
    """Return the folders of the builds in the store that are whole, by name."""
    found = {}
    for each in store.installed():
        with contextlib.suppress(EdgeAgentError):  # damaged, cut or renamed: as if not here, and verify says why
            found[each.name] = store.path(each.name)
    return found


def _told(variant: Variant, progress: PullProgress) -> str:
    if progress.phase != "fetching" or not progress.total_bytes:
        return f"{progress.phase} {variant.name}"
    share = 100 * progress.done_bytes // progress.total_bytes
    return f"fetches {variant.name}: {share} % of {in_words(progress.total_bytes)}"


class Provision:
    """Brings a build for every served model, and knows where it can run. `on_changed` is told on any thread.

    `images_bytes` are left free from the first load of a model that sees: for the child that decodes its images.
    `apart`: whether clients' prompts are kept apart, see ModelSpec.
    """

    def __init__(
        self,
        serves: Sequence[ServeSection],
        *,
        catalogue: Catalogue,
        sources: DecisionSources,
        engines: Engines,
        images_bytes: int = 0,
        apart: bool = False,
        retry_s: float = RETRY_S,
    ) -> None:
        self._catalogue = catalogue
        self._sources = sources
        self.on_changed: Signal[[]] = Signal()
        self._engines = engines
        self._images_bytes = images_bytes
        self._apart = apart
        self._sees = False
        self._retry_s = retry_s
        self._chosen = [serve for serve in serves if serve.chosen]
        self._serves = {serve.name: serve for serve in serves}
        self._lock = threading.Lock()
        self._decisions: dict[str, Decision] = {}
        self._notes: dict[str, str] = {serve.name: "looks at what this machine can run" for serve in self._chosen}
        self._faults: dict[str, EdgeAgentError] = {}
        self._compared: dict[str, Compared | None] = {}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self.beat = Heartbeat("models")
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._fallbacks = {
            serve.name: Fallbacks(
                serve.name,
                places=partial(self._places, serve),
                load=partial(self._load, serve),
                ready=partial(self._ready, serve),
                changed=self.on_changed,
                heard=partial(self._on_answer, serve.name),
                moves=serve.fallback,
            )
            for serve in serves
        }

    def start(self) -> None:
        """Begin to decide and fetch, where there is something to decide."""
        if self._chosen:
            self._thread.start()

    def stop(self) -> None:
        """Stop fetching; what was fetched so far is kept and continued next time."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def look(self) -> None:
        """Notice that there may be a build now for a model that had none."""
        self._wake.set()

    def decisions(self) -> Mapping[str, Decision]:
        """Return the decision for each model whose build we choose, as far as they are made."""
        with self._lock:
            return dict(self._decisions)

    def fallbacks(self, name: str) -> Fallbacks:
        """Return the places where a served model can run."""
        return self._fallbacks[name]

    def set_aside(self) -> Mapping[str, Sequence[SetAside]]:
        """Return the places that failed and have not worked since, by served model."""
        return {name: found for name, fallbacks in self._fallbacks.items() if (found := fallbacks.set_aside())}

    def compared(self) -> Mapping[str, Compared]:
        """Return whether what a served model says was held against the processor's words; none on the processor."""
        with self._lock:
            return {name: found for name, found in self._compared.items() if found is not None}

    def _on_answer(self, model: str, spec: ModelSpec, beginning: str) -> None:
        """Take in what a model's answer began with at its trial; the processor's words are kept for other devices."""
        known = self._sources.known
        if known is not None and spec.canary is not None and spec.device == "cpu":
            known.keep(spec.path, spec.backend, spec.canary.prompt, beginning)
        with self._lock:
            self._compared[model] = compared(spec)

    def _places(self, serve: ServeSection) -> Sequence[Placed]:
        """Return them as they are now: of this device, then elsewhere where the settings allow it.

        Raises as `_here`; but where there is a place elsewhere, what is missing here is a place that cannot be had.
        """
        table = whose(serve, self._serves).openai
        if table is None:
            return self._here(serve)
        there = Placed(NOWHERE, BACKEND, DEVICE, variant=table.model, elsewhere=True)
        if serve.openai is not None:
            return [there]
        try:
            return [*self._here(serve), there]
        except EdgeAgentError as error:
            return [Placed(NOWHERE, serve.backend, serve.device, variant=serve.wanted, fault=error), there]

    def _here(self, serve: ServeSection) -> Sequence[Placed]:
        """Return the given folder's places, or those of the builds in the store.

        Raises NotYetError while there is none, EdgeAgentError when there will be none as things are.
        """
        if serve.path is not None:
            return places.of_folder(serve, serve.path, self._sources.measured())
        with self._lock:
            decision, fault, note = (
                self._decisions.get(serve.name),
                self._faults.get(serve.name),
                self._notes.get(serve.name),
            )
        if fault is not None:
            raise fault
        if decision is None or note:
            raise NotYetError(note)
        found = places.of_decision(decision, self._sources.installed())
        if not found:
            raise EdgeAgentError(Code.MODEL_MISSING, _absent(decision))
        return found

    def _load(self, serve: ServeSection, place: Placed, reserved_bytes: int) -> tuple[ModelSpec, int | None]:
        if place.fault is not None:
            raise place.fault
        if place.elsewhere:
            return upstream(whose(serve, self._serves))
        reserved_bytes += self._images_bytes if self._sees or _sees(place) else 0
        beside = [spec for name, spec in self._engines.loaded().items() if name != serve.name]
        return prepare(place, serve, self._sources.machine(), reserved_bytes=reserved_bytes, beside=beside)

    def _ready(self, serve: ServeSection, place: Placed, spec: ModelSpec) -> ModelSpec:
        """Return what to load, and have everything as it shall be then."""
        if place.elsewhere:
            return spec
        self._sees = self._sees or _sees(place)
        spec = keeping(spec, self._sources.compiled, bytes_max=self._sources.compiled_bytes)
        return replace(spec, canary=self._canary(serve, place), apart=self._apart)

    def _canary(self, serve: ServeSection, place: Placed) -> Canary | None:
        if self._sources.known is None:
            return None
        variants = () if serve.path is not None else self._catalogue.builds_of(place.variant or "")
        family = self._catalogue.family_of(variants[0]) if variants else None
        return self._sources.known.canary(place.path, place.backend, family)

    # The thread

    def _run(self) -> None:
        self.beat(TELLS_S)
        runtimes, bandwidth = self._sources.runtimes(), self._sources.bandwidth()
        waits = dict.fromkeys((serve.name for serve in self._chosen), 0.0)
        backoff = dict.fromkeys(waits, self._retry_s)
        while waits and not self._stopping.is_set():
            for serve in self._chosen:
                if waits.get(serve.name, float("inf")) > time.monotonic():
                    continue
                self.beat(TELLS_S)
                if self._provide(serve, runtimes, bandwidth):
                    del waits[serve.name]
                else:
                    waits[serve.name] = time.monotonic() + backoff[serve.name]
                    backoff[serve.name] = min(RETRY_MOST_S, 2 * backoff[serve.name])
            wait_s = max(0.0, min(waits.values(), default=0.0) - time.monotonic())
            self.beat(wait_s)
            if waits and self._wake.wait(wait_s):
                self._wake.clear()
                waits = dict.fromkeys(waits, 0.0)
        self.beat.over()

    def _provide(self, serve: ServeSection, runtimes: Runtimes, bandwidth: float | None) -> bool:
        """Decide, and fetch the best candidate if it is not there; return whether nothing is left to be done."""
        try:
            installed = self._sources.installed()
        except EdgeAgentError as error:
            self._settle(serve, None, fault=error)
            return False
        machine = self._sources.machine()
        memory = replace(machine.memory, bandwidth_bytes_per_s=bandwidth)
        try:
            decision = choose(
                wanted(serve, images_bytes=self._images_bytes),
                machine=replace(machine, memory=memory),
                catalogue=self._catalogue,
                runtimes=runtimes,
                installed=installed,
                measured=self._sources.measured(),
            )
        except EdgeAgentError as error:
            self._settle(serve, None, fault=error)
            return True
        if not decision.candidates:
            self._settle(serve, decision, fault=EdgeAgentError(Code.NO_FIT, _nothing(decision)))
            return False
        best = decision.candidates[0]
        log.info("model.chosen", model=serve.name, variant=best.variant.name, device=best.device)
        if best.installed or self._sources.fetch is None:
            here = any(each.installed for each in decision.candidates)
            fault = None if here else EdgeAgentError(Code.MODEL_MISSING, _absent(decision))
            self._settle(serve, decision, fault=fault)
            return here
        return self._fetch(serve, decision, best)

    def _fetch(self, serve: ServeSection, decision: Decision, best: Candidate) -> bool:
        assert self._sources.fetch is not None  # noqa: S101 - only called where fetching is allowed
        self._settle(serve, decision, note=f"fetches {best.variant.name}")
        try:
            self._sources.fetch(best.variant, lambda text: self._note(serve, text), self._stopping)
        except EdgeAgentError as error:
            if self._stopping.is_set():
                return False
            log.error("model.unfetched", model=serve.name, variant=best.variant.name, reason=error.message)
            here = any(each.installed for each in decision.candidates)
            self._settle(serve, decision, fault=None if here else error)
            return False
        self._settle(serve, decision)
        return True

    def _settle(
        self,
        serve: ServeSection,
        decision: Decision | None,
        *,
        note: str = "",
        fault: EdgeAgentError | None = None,
    ) -> None:
        with self._lock:
            self._notes[serve.name] = note
            if decision is not None:
                self._decisions[serve.name] = decision
            if fault is None:
                self._faults.pop(serve.name, None)
            else:
                self._faults[serve.name] = fault
        if serve.upstream is not None and fault is None and not note:
            self._fallbacks[serve.name].reset_backoff()  # what has come is tried before another machine is asked again
        self.on_changed()

    def _note(self, serve: ServeSection, text: str) -> None:
        self.beat(TELLS_S)
        with self._lock:
            self._notes[serve.name] = text


def _sees(place: Placed) -> bool:
    build = read_build(place.path, place.backend)
    return build is not None and build.hidden_size is not None


def wanted(serve: ServeSection, *, images_bytes: int) -> WantedModel:
    """Return what a table of the settings asks of a decision."""
    return WantedModel(serve.wanted, serve.context_tokens, serve.parallel, serve.backend, serve.device, images_bytes)


def _absent(decision: Decision) -> str:
    best = decision.candidates[0].variant.name
    return (
        f"no build of {decision.wanted.model} is in the store; fetch the best one for this machine with: "
        f"edge-agent models pull {best} (or set models.pull to missing; without a network: edge-agent models import)"
    )


def _nothing(decision: Decision) -> str:
    reasons = "; ".join(f"{each.variant.name} on {each.device}: {each.reason}" for each in decision.rejected)
    return f"this machine can run no build of {decision.wanted.model}: {reasons}"
