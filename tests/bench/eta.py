"""How far estimates are from the truth: bursts of mixed jobs on one agent, each told its ETA when it was queued.

The first burst teaches the agent its speeds and is not counted. `tiny` never ends an answer by itself; `--model demo`
does, so that `max_tokens` says little of their length. Error is |told - true| / true of every job that was told an ETA
and took at least 0.2 s.
"""

import random
import time
from dataclasses import dataclass

from edge_agent.protocol.payloads import Result, Status
from tests.bench.rig import Figure, Rig, arguments, model_folder, percentile, report, rig
from tests.running import requester

PATIENCE_S = 300.0
TOPICS = ("pump", "door", "fan", "lamp", "valve")
SHORT, LONG = "Status: {0} on, door open. Is the {0} on?", "Turn on the {0}. " * 12


@dataclass(frozen=True, slots=True)
class Told:
    """What one job was told when it was queued, and when it was done, in seconds from then."""

    position: int
    eta_s: float
    true_s: float

    @property
    def error(self) -> float:
        return abs(self.eta_s - self.true_s) / self.true_s


def burst(client, jobs: int, tokens: int, chance: random.Random) -> list[Told]:
    """Send jobs at once; return what those were told that were told anything."""
    handles = []
    for _ in range(jobs):
        prompt = chance.choice((SHORT, LONG)).format(chance.choice(TOPICS))
        handles.append(client.submit("edge-01", prompt=prompt, max_tokens=chance.randint(tokens // 20, tokens)))
    told = {}
    ended_s = {}
    for handle in handles:
        for update in handle.updates(PATIENCE_S):
            if isinstance(update, Status) and update.eta_s is not None:
                told.setdefault(handle.job_id, update)
            elif isinstance(update, Result):
                ended_s[handle.job_id] = update.timings.total_ms / 1000
    return [Told(told[name].queue_position, told[name].eta_s, ended_s[name]) for name in told]


def measure(made: Rig, jobs: int, tokens: int, bursts: int) -> list[Figure]:
    made.start()
    chance = random.Random(1)
    with requester(made.broker, "asker") as client:
        burst(client, jobs, tokens, chance)
        seen: list[Told] = []
        for _ in range(bursts):
            seen += burst(client, jobs, tokens, chance)
            time.sleep(0.2)
    seen = [each for each in seen if each.true_s >= 0.2]  # an ETA has a resolution of 0.1 s
    errors = [each.error for each in seen]
    ratio = sum(each.eta_s for each in seen) / sum(each.true_s for each in seen)
    return [
        Figure("ETA error, median", percentile(errors, 50), "of the true time"),
        Figure("ETA error, p90", percentile(errors, 90), "of the true time"),
        Figure("ETAs together ÷ true times together", ratio, ""),
        Figure("jobs told an ETA", len(seen), ""),
        Figure("true time, median", percentile([each.true_s for each in seen], 50), "s"),
    ]


def main() -> None:
    options = arguments(__doc__, model="tiny", jobs=20, tokens=800, bursts=6, parallel=2).parse_args()
    with rig(model_folder(options.model), parallel=options.parallel, context_tokens=1024) as made:
        figures = measure(made, options.jobs, options.tokens, options.bursts)
    notes = [f"{options.bursts} bursts of {options.jobs} jobs, {options.parallel} lanes, model {options.model}"]
    report("Estimates", figures, as_json=options.json, notes=notes)


if __name__ == "__main__":
    main()
