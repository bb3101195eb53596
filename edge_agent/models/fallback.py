"""The places where one served model can run, best first: which of them failed and are left alone, which is next.

A place is a build on a device. One that failed is set aside while there is another to go to, see quarantine.py; the
last one never is. What is set aside is tried again when its wait is over, or when nothing else can be loaded.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.base.errors import EdgeAgentError
from edge_agent.base.log import get_logger
from edge_agent.engine.backend import ModelSpec
from edge_agent.jobs.job import Fallback
from edge_agent.models import quarantine
from edge_agent.models.load import Placed
from edge_agent.models.quarantine import ASIDE_FIRST_S, Aside

Key = tuple[str, str, str]
"""Build, backend, device."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class SetAside:
    """A place that has failed and has not worked since: why, and how long it is left alone."""

    variant: str
    backend: str
    device: str
    reason: str
    wait_s: float


class Fallbacks:
    """Asked and told from any thread.

    `places` returns what there is, best first, and raises what prepare shall; `load` makes of one what to load and how
    much memory it may take, or raises EdgeAgentError; `ready` makes that ready to be loaded now. `changed` is called
    when a place is set aside or works again, `heard` with what a build began with when it was tried. Without `moves`
    nothing is set aside.
    """

    def __init__(
        self,
        name: str,
        *,
        places: Callable[[], Sequence[Placed]],
        load: Callable[[Placed, int], tuple[ModelSpec, int | None]],
        changed: Callable[[], None],
        ready: Callable[[Placed, ModelSpec], ModelSpec] = lambda _place, spec: spec,
        heard: Callable[[ModelSpec, str], None] = lambda _spec, _beginning: None,
        moves: bool = True,
        now_s: Callable[[], float] = time.monotonic,
        first_s: float = ASIDE_FIRST_S,
    ) -> None:
        self._name = name
        self._places = places
        self._load = load
        self._changed = changed
        self._ready = ready
        self._heard = heard
        self._moves = moves
        self._now_s = now_s
        self._first_s = first_s
        self._lock = threading.Lock()
        self._asides: dict[Key, Aside] = {}
        self._order: tuple[Key, ...] = ()
        self._refused: frozenset[Key] = frozenset()

    def appraise(self, reserved_bytes: int) -> int | None:
        """Return how much memory that takes which `prepare` would load now; nothing is noted. Raises as `prepare`."""
        _, (_, limit_bytes) = self._first(self._places(), reserved_bytes, {})
        return limit_bytes

    def prepare(self, reserved_bytes: int) -> tuple[ModelSpec, int | None]:
        """Return what to load now: the best place that fits and is not left alone, else the best of those that are.

        Before another machine is asked, those of this one that do not fit are set aside too, to be tried again.
        Raises what `places` raises, and EdgeAgentError when memory holds none.
        """
        places = self._places()
        with self._lock:
            self._order = tuple(map(_key, places))
            self._asides = {key: each for key, each in self._asides.items() if key in self._order}
        refused: dict[Key, EdgeAgentError] = {}
        try:
            place, (spec, limit_bytes) = self._first(places, reserved_bytes, refused)
        finally:
            for key, error in refused.items():
                self._put_off(key, error.message)
            with self._lock:
                self._refused = frozenset(refused)
        if place.elsewhere:
            self._set_aside(refused)
        return self._ready(place, spec), limit_bytes

    def _first(
        self, places: Sequence[Placed], reserved_bytes: int, refused: dict[Key, EdgeAgentError]
    ) -> tuple[Placed, tuple[ModelSpec, int | None]]:
        """Return the best place that fits, and what to load there; `refused` takes those that do not.

        Raises EdgeAgentError, the best one's, when none does.
        """
        with self._lock:
            held = {key for key in map(_key, places) if self._held(key)}
        for place in sorted(places, key=lambda place: _key(place) in held):
            try:
                return place, self._load(place, reserved_bytes)
            except EdgeAgentError as error:
                refused[_key(place)] = error
        raise next(iter(refused.values()))

    def spare(self, spec: ModelSpec) -> bool:
        """Return whether there is another place to go to than this one."""
        with self._lock:
            return self._spare(key_of(spec))

    def failed(self, spec: ModelSpec, reason: str) -> bool:
        """Set a place aside, and return True; unless there is no other."""
        key = key_of(spec)
        with self._lock:
            if not self._spare(key):
                return False
            fresh = quarantine.failed(self._asides.get(key), reason, now_s=self._now_s(), first_s=self._first_s)
            self._asides[key] = fresh
        log.warning("device.set_aside", model=self._name, **_named(key), reason=reason, wait_s=fresh.wait_s)
        self._changed()
        return True

    def works(self, spec: ModelSpec, heard: str) -> None:
        """Note that a place passed its trial, and what was heard there."""
        self._heard(spec, heard)
        key = key_of(spec)
        with self._lock:
            before = self._asides.get(key)
            if before is None or not before.waits:
                return
            self._asides[key] = quarantine.works(before, now_s=self._now_s())
        log.info("device.back", model=self._name, **_named(key))
        self._changed()

    def reset_backoff(self) -> None:
        """Leave nothing alone: a job was to blame, which killed the last place too."""
        with self._lock:
            self._asides = {
                key: quarantine.forgiven(each, now_s=self._now_s()) if each.waits else each
                for key, each in self._asides.items()
            }

    def better(self, spec: ModelSpec) -> bool:
        """Return whether a better place than this one has waited long enough to be tried again."""
        with self._lock:
            return any(not self._asides[key].held(self._now_s()) for key in self._before(key_of(spec)))

    def fallback(self, spec: ModelSpec) -> Fallback | None:
        """Return the best place that failed, when this one stands in for it."""
        with self._lock:
            for key in self._before(key_of(spec)):
                variant, backend, device = key
                return Fallback(variant=variant, backend=backend, device=device, reason=self._asides[key].reason)
        return None

    def set_aside(self) -> tuple[SetAside, ...]:
        """Return the places that failed and have not worked since."""
        with self._lock:
            return tuple(SetAside(*key, each.reason, each.wait_s) for key, each in self._asides.items() if each.waits)

    def _set_aside(self, refused: Mapping[Key, EdgeAgentError]) -> None:
        """Set aside what was refused and is not left alone already."""
        with self._lock:
            fresh = {
                key: quarantine.failed(self._asides.get(key), error.message, now_s=self._now_s(), first_s=self._first_s)
                for key, error in refused.items()
                if not self._held(key)
            }
            self._asides |= fresh
        for key, each in fresh.items():
            log.warning("device.set_aside", model=self._name, **_named(key), reason=each.reason, wait_s=each.wait_s)
        if fresh:
            self._changed()

    def _put_off(self, key: Key, reason: str) -> None:
        """Leave a place alone for longer that was to be tried again and cannot even be prepared."""
        with self._lock:
            before = self._asides.get(key)
            if before is not None and before.waits and not self._held(key):
                self._asides[key] = quarantine.failed(before, reason, now_s=self._now_s(), first_s=self._first_s)

    def _held(self, key: Key) -> bool:
        return key in self._asides and self._asides[key].held(self._now_s())

    def _spare(self, key: Key) -> bool:
        others = [each for each in self._order if each != key and each not in self._refused]
        return self._moves and any(not self._held(each) for each in others)

    def _before(self, key: Key) -> list[Key]:
        """Return the better places that have not worked since they failed."""
        better = self._order[: self._order.index(key)] if key in self._order else ()
        return [each for each in better if each in self._asides and self._asides[each].waits]


def key_of(spec: ModelSpec) -> Key:
    """Return which place a spec was made of."""
    return spec.variant or spec.path.name, spec.backend, spec.device


def _key(place: Placed) -> Key:
    return place.variant or place.path.name, place.backend, place.device


def _named(key: Key) -> dict[str, str]:
    return dict(zip(("variant", "backend", "device"), key, strict=True))
