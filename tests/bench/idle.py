"""What an idle agent costs: memory and processor time of the parent, after it has done one job."""

import time
from pathlib import Path

import psutil

from tests.bench.rig import Figure, arguments, model_folder, report, rig, wait_idle
from tests.running import requester

MIB = 2**20


def main() -> None:
    options = arguments(__doc__, model="tiny", seconds=30.0).parse_args()
    with rig(model_folder(options.model)) as made:
        parent = made.start()
        with requester(made.broker) as client:
            client.submit("edge-01", prompt="Once", max_tokens=8).result(300)
        (engine,) = made.agent.engines()
        for process in (parent, engine):
            wait_idle(process, for_s=3.0)
        before_s, engine_before_s = ran_s(parent), ran_s(engine)
        begun_s = time.monotonic()
        rss = []
        while time.monotonic() - begun_s < options.seconds:
            rss.append(parent.memory_info().rss / MIB)
            time.sleep(0.5)
        elapsed_s = time.monotonic() - begun_s
        figures = memory(parent, max(rss))
        figures += [
            Figure("parent: processor", 100 * (ran_s(parent) - before_s) / elapsed_s, "%", at_most=0.5),
            Figure("parent: threads", parent.num_threads(), ""),
            Figure("engine child: processor", 100 * (ran_s(engine) - engine_before_s) / elapsed_s, "%"),
        ]
    report(
        "The idle agent",
        figures,
        as_json=options.json,
        notes=[f"{elapsed_s:.0f} s, telemetry every 10 s as by default; percent of one core"],
    )


def ran_s(process: psutil.Process) -> float:
    """Return the processor seconds of a process's living threads, to the nanosecond: its usual times tick 100 a second.

    The first number in schedstat (the kernel's Documentation/scheduler/sched-stats.rst).
    """
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def memory(parent: psutil.Process, rss_mib: float) -> list[Figure]:
    full = parent.memory_full_info()
    return [
        Figure("parent: resident (RSS), most", rss_mib, "MiB", at_most=50),
        Figure("parent: its share of it (PSS)", full.pss / MIB, "MiB"),
        Figure("parent: its alone (USS)", full.uss / MIB, "MiB"),
    ]


if __name__ == "__main__":
    main()
