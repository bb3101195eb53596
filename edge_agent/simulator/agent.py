"""An agent without an engine: on the wire it does what agents do, with their own types, births, wills and words."""

import random
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial

from edge_agent import __version__
from edge_agent.base.errors import EdgeAgentError
from edge_agent.health.birth import birth_certificate, decision_report
from edge_agent.health.condition import Condition, condition
from edge_agent.mqtt import session
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.link import Link, Receipt
from edge_agent.mqtt.subscriptions import Subscription
from edge_agent.protocol.encode import Speech
from edge_agent.protocol.messages import TELEMETRY_PERIODS, Inbound, Publication, readable_job_id
from edge_agent.protocol.payloads import DecisionReport, Info, Telemetry
from edge_agent.protocol.topics import CLIENT, Topics
from edge_agent.serving.presence import TAG_CHARACTERS, Announcer
from edge_agent.serving.reporter import JITTER
from edge_agent.settings.load import AgentSection, ModelsSection, Settings, TelemetrySection
from edge_agent.simulator.jobs import SimulatedJobs
from edge_agent.simulator.machine import SERVE, SimulatedMachine, decided


class SimulatedAgent:
    """One made-up agent. Everything but the callbacks of its connection runs on the thread that calls `do`.

    `do` has something done on that thread, soon or after some seconds. An answer takes `token_s` for each token.
    """

    def __init__(
        self,
        access: Access,
        *,
        root: str,
        pretence: SimulatedMachine,
        period_s: float,
        token_s: float,
        do: Callable[[float, Callable[[], None]], None],
        chance: random.Random,
        now_s: Callable[[], float],
    ) -> None:
        self.name = access.client_id
        self._topics = Topics(root, self.name)
        self._speech = Speech(self._topics)
        self._settings = Settings(
            agent=AgentSection(id=self.name),
            models=ModelsSection(serve=(SERVE,)),
            telemetry=TelemetrySection(period_s=period_s),
        )
        self._pretence = pretence
        self._period_s = period_s
        self._do = do
        self._chance = chance
        self._now_s = now_s
        self._begun_s = self._reported_s = now_s()
        self._simulated_jobs = SimulatedJobs(
            self._speech, pretence=pretence, token_s=token_s, say=self._say, do=do, now_s=now_s
        )
        self._rejected = 0
        self._unanswered: set[int] = set()
        self._boot_id = uuid.UUID(int=chance.getrandbits(128)).hex
        self._announcer = Announcer(
            self._topics,
            boot_id=self._boot_id,
            tag=session.derived(access.session, self.name)[:TAG_CHARACTERS],
        )
        self._announcer.on_said.connect(self._say)
        self._link = Link(
            access,
            subscriptions=(Subscription(self._topics.commands), Subscription(self._topics.event("presence"))),
            will=self._announcer.will,
        )
        self._link.on_received.connect(lambda inbound, receipt: do(0.0, partial(self._receive, inbound, receipt)))
        self._link.on_up.connect(lambda epoch: do(0.0, partial(self._announcer.birth, epoch, self)))
        self._link.on_answered.connect(lambda mid, _reason: do(0.0, partial(self._unanswered.discard, mid)))

    @property
    def counts(self) -> Counter[str]:
        """What happened to jobs: `accepted`, `rejected`, and ended ones by state."""
        return self._simulated_jobs.counts + Counter(rejected=self._rejected)

    @property
    def connected(self) -> bool:
        """Whether the broker has it."""
        return self._link.connected

    @property
    def settled(self) -> bool:
        """Whether the broker has answered everything it said."""
        return not self._unanswered

    def start(self) -> None:
        """Connect, and report from now on."""
        self._link.start()
        self._do(self._chance.uniform(0.05, 1.0) * self._period_s, self._report)

    def farewell(self) -> None:
        """Say that it leaves in order, and end what it was asked."""
        self._simulated_jobs.close()
        self._announcer.farewell("the simulation is over")

    def stop(self) -> None:
        """Disconnect; without `farewell` first, the broker keeps that it is there."""
        self._link.stop()

    # How it is

    def condition(self) -> Condition:
        """Return how it is."""
        return condition(
            engines=(self._pretence.engine,),
            draining=False,
            storage="",
            duplicate=self._announcer.duplicate,
            strained=self._pretence.strained,
        )

    def describe(self, conn_seq: int) -> Info:
        """Return its birth certificate for a connection."""
        return birth_certificate(
            self._settings,
            self._pretence.make.machine,
            (self._pretence.engine,),
            self.condition(),
            boot_id=self._boot_id,
            conn_seq=conn_seq,
        )

    def decisions(self) -> DecisionReport:
        """Return what runs where and why."""
        decisions = {SERVE.name: decided(self._pretence.make)}
        return decision_report((SERVE,), decisions, agent=self.name, boot_id=self._boot_id)

    def _report(self) -> None:
        now_s = self._now_s()
        self._pretence.pass_s(now_s - self._reported_s)
        self._reported_s = now_s
        self._announcer.refresh(self)
        expiry_s = round(TELEMETRY_PERIODS * self._period_s)
        topic, payload = self._topics.event("telemetry"), self._telemetry().encode()
        self._say(Publication(topic, payload, qos=0, expiry_s=expiry_s))
        self._do(self._period_s * (1 + JITTER * self._chance.uniform(-1, 1)), self._report)

    def _telemetry(self) -> Telemetry:
        pretence, condition_now = self._pretence, self.condition()
        counted = Counter(self.counts)
        counted.update(succeeded=pretence.succeeded, completion_tokens=pretence.tokens)
        del counted["accepted"]
        return Telemetry(
            **dict(pretence.machine_reading()),
            agent=self.name,
            version=__version__,
            boot_id=self._boot_id,
            uptime_s=round(self._now_s() - self._begun_s, 1),
            health=condition_now.health,
            reasons=condition_now.reasons,
            restraint=1 if pretence.strained else 0,
            queue={"waiting": 0, "queued": pretence.waiting, "running": pretence.running},
            engines=(pretence.engine_reading(),),
            counters={name: count for name, count in counted.items() if count},
            reconnects=max(0, self._link.connections - 1),
        )

    def _say(self, publication: Publication) -> None:
        mid = self._link.publish(publication)
        if publication.qos and mid is not None:
            self._unanswered.add(mid)

    # What it is asked

    def _receive(self, inbound: Inbound, receipt: Receipt) -> None:
        if inbound.topic == self._topics.event("presence"):
            self._announcer.seen(inbound, self)
        else:
            asked = self._topics.parse(inbound.topic)
            if asked is not None and CLIENT.match(asked.client):
                try:
                    self._simulated_jobs.take(asked, inbound)
                except EdgeAgentError as error:
                    self._rejected += 1
                    job_id = readable_job_id(inbound.payload)
                    self._say(self._speech.rejection(asked.client, job_id, error, inbound))
        self._link.ack(receipt)
