"""Restart with 100,000 waiting jobs: from the start of the process to the first claim, after a kill -9.

The interpreter's start, the check of the database and the recovery are in it; the load of the engine is subtracted
(from `engine.starting` to `engine.ready` in the log) and reported apart, because it is the model's, not the queue's.
"""

import time
from datetime import datetime

from tests.bench.backlog import fill
from tests.bench.rig import Rig, arguments, median, model_folder, report, rig

HIGH_WATER = "[queue]\nhigh_water_jobs = 1000000\nhigh_water_bytes = 4294967296\n"
EVENTS = ("agent.started", "engine.starting", "engine.ready", "job.started")


def said_s(made: Rig, event: str) -> float:
    """Return when the newest event of a name was logged, in Unix seconds."""
    return datetime.fromisoformat(made.agent.said(event)[-1]["timestamp"]).timestamp()


def restart(made: Rig, turn: int) -> tuple[float, float, float]:
    """Start the agent, wait for its first claim, kill it; return the seconds to link, of the load, to the claim."""
    begun_s = time.time()
    made.agent.start()
    made.agent.wait_said("job.started", turn + 1)
    made.agent.kill()
    moment_s = {event: said_s(made, event) for event in EVENTS}
    load_s = moment_s["engine.ready"] - moment_s["engine.starting"]
    return moment_s["agent.started"] - begun_s, load_s, moment_s["job.started"] - begun_s


def main() -> None:
    options = arguments(__doc__, model="tiny", jobs=100_000, restarts=10).parse_args()
    with rig(model_folder(options.model), extra=HIGH_WATER) as made:
        made.agent.state_dir.mkdir(parents=True)
        fill(made.agent.state_dir / "queue.db", options.jobs)
        measured = [restart(made, turn) for turn in range(options.restarts)]
        size = (made.agent.state_dir / "queue.db").stat().st_size // 2**20
    figures = [
        median("start → first claim, without the load", [claim - load for _, load, claim in measured], "s", at_most=2),
        median("start → first claim, with the load", [claim for _, _, claim in measured], "s"),
        median("start → ready for the service manager", [started for started, _, _ in measured], "s"),
        median("load of the engine", [load for _, load, _ in measured], "s"),
    ]
    report(
        f"Restart with {options.jobs:,} waiting jobs",
        figures,
        as_json=options.json,
        notes=[f"{options.model}, {options.restarts} kills; database {size} MiB"],
    )


if __name__ == "__main__":
    main()
