"""Everything that is known of the agents of a fleet: messages in, members out. PURE.

What one agent says is kept apart from what others say and is bounded: a payload that is wrong or too large is passed
over and counted, and the view goes on with what that agent said before.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edge_agent.fleet.liveness import Birth, Life
from edge_agent.protocol.decode import show
from edge_agent.protocol.messages import TELEMETRY_PERIODS, Inbound
from edge_agent.protocol.payloads import DecisionReport, Info, Presence, Telemetry
from edge_agent.protocol.topics import CLIENT, Topics

AGENTS_MAX = 1000
"""More are not shown; each may take BYTES_MAX."""
BYTES_MAX = {"presence": 8192, "info": 32_768, "decision": 65_536, "telemetry": 32_768}
"""What is read of an agent, by kind; real ones take 0.2, 1, 4 and 1 kB. Larger ones are passed over."""
SAMPLES_MAX = 60
"""Reports that are remembered for the curves: ten minutes of the default period."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one report said that changes all the time, for curves. None: not known."""

    tokens_per_s: float | None
    jobs: int
    cpu_percent: float | None
    memory_percent: float | None
    celsius: float | None


@dataclass(slots=True)
class Member:
    """An agent: its life, and the last it said of each kind.

    `health` and `reasons` are its newest word on that, in presence or telemetry; `faults` counts payloads that were
    passed over.
    """

    name: str
    life: Life
    presence: Presence | None = None
    info: Info | None = None
    telemetry: Telemetry | None = None
    decision_payload: bytes | None = None
    health: str | None = None
    reasons: tuple[str, ...] = ()
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    faults: int = 0

    @property
    def decision(self) -> DecisionReport | None:
        """What runs there and why; kept as it came, for it is long and seldom looked at."""
        if self.decision_payload is None:
            return None
        return show(DecisionReport, self.decision_payload, self.name, bytes_max=BYTES_MAX["decision"])


class Roster:
    """The members of the fleet below a root, by what came on the topics of `filters`. Times are monotonic seconds."""

    def __init__(self, root: str) -> None:
        self._prefix = f"{root}/agents/"
        self._members: dict[str, Member] = {}
        self._deaf_s: float | None = 0.0
        self.filters = tuple(Topics(root, "+").event(leaf) for leaf in BYTES_MAX)
        self.overlooked = False
        """Whether there are more agents than AGENTS_MAX."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def member(self, name: str) -> Member | None:
        """Return an agent; None when nothing was heard of it."""
        return self._members.get(name)

    def hearing(self, now_s: float) -> None:
        """We listen, again or for the first time: what the broker has kept comes next."""
        self._deaf_s = None
        for member in self._members.values():
            member.life = member.life.afresh(now_s)

    def deaf(self, now_s: float) -> None:
        """The connection is lost: nobody falls silent while we do not listen."""
        if self._deaf_s is None:
            self._deaf_s = now_s

    def judged_s(self, now_s: float) -> float:
        """Return the time at which silence is judged: now, or when we last listened."""
        return now_s if self._deaf_s is None else self._deaf_s

    def take(self, inbound: Inbound, now_s: float) -> bool:
        """Take in a message; return whether it was one of an agent."""
        name, _, leaf = inbound.topic.removeprefix(self._prefix).partition("/evt/")
        if not CLIENT.match(name) or leaf not in BYTES_MAX:
            return False
        if leaf == "presence" and not inbound.payload:
            self._members.pop(name, None)  # somebody cleared what the broker kept: the agent is no more
            return True
        member = self._members.get(name)
        if member is None:
            if len(self._members) >= AGENTS_MAX:
                self.overlooked = True
                return False
            member = self._members[name] = Member(name, Life(awaited_s=now_s))
        try:
            _read(member, leaf, inbound, now_s)
        except ValueError:
            member.faults += 1
        return True


def _read(member: Member, leaf: str, inbound: Inbound, now_s: float) -> None:
    """Take in what an agent said. Raises ValueError when it cannot be read; nothing has changed then."""
    bytes_max, name = BYTES_MAX[leaf], member.name
    match leaf:
        case "presence":
            presence = show(Presence, inbound.payload, name, bytes_max=bytes_max)
            _presence(member, presence)
            if presence.state != "online":
                return  # a will is no word of the agent
        case "info":
            info = show(Info, inbound.payload, name, bytes_max=bytes_max)
            member.info, member.life = info, member.life.certified(Birth(info.boot_id, info.conn_seq))
            if info.telemetry_period_s is not None:
                member.life = member.life.patient(TELEMETRY_PERIODS * info.telemetry_period_s)
        case "decision":
            show(DecisionReport, inbound.payload, name, bytes_max=bytes_max)
            member.decision_payload = inbound.payload
        case "telemetry":
            telemetry = show(Telemetry, inbound.payload, name, bytes_max=bytes_max)
            member.samples.append(_sample(member.telemetry, telemetry))
            member.telemetry, member.health, member.reasons = telemetry, telemetry.health, telemetry.reasons
            if not inbound.retained:
                member.life = member.life.reported(telemetry.boot_id)
    if not inbound.retained:
        member.life = member.life.word(now_s)


def _presence(member: Member, said: Presence) -> None:
    birth = Birth(said.boot_id, said.conn_seq)
    after = member.life.online(birth) if said.state == "online" else member.life.offline(birth)
    if after is not member.life:
        member.life, member.presence = after, said
        member.health, member.reasons = said.health, (said.reason,) if said.reason else ()


def _sample(before: Telemetry | None, now: Telemetry) -> Sample:
    return Sample(
        tokens_per_s=_tokens_per_s(before, now),
        jobs=sum(now.queue.values()),
        cpu_percent=now.cpu_percent,
        memory_percent=memory_percent(now),
        celsius=now.hottest_celsius,
    )


def _tokens_per_s(before: Telemetry | None, now: Telemetry) -> float | None:
    """Return the tokens per second that were generated between two reports of the same start."""
    if before is None or before.boot_id != now.boot_id or now.uptime_s <= before.uptime_s:
        return None
    made = now.counters.get("completion_tokens", 0) - before.counters.get("completion_tokens", 0)
    return max(0.0, round(made / (now.uptime_s - before.uptime_s), 1))


def memory_percent(told: Telemetry) -> float | None:
    """Return how much of the machine's memory is taken."""
    total, available = told.memory_total_bytes, told.memory_available_bytes
    return None if not total or available is None else round(100 * max(0.0, 1 - available / total), 1)
