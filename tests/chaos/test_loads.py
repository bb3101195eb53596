"""A model that comes and goes leaves nothing behind: no process, no memory, no file, no thread."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from running import PATIENCE_S, AgentProcess, requester, wait_for

pytestmark = [pytest.mark.broker, pytest.mark.engine]

LOADS = int(os.environ.get("LOADS", "5"))
GROWTH_BYTES, LATE_BYTES = 8 * 2**20, 2 * 2**20
"""What the agent may take more than after the first unload, and in the later half of them.

It takes more at first and then no more: of 50 the first half added 4.1 MiB, the second 0.4, the last twelve none.
"""

PASSING = 3
"""Threads and open files that may just be there for something else."""


def deleted_files(process):
    """Return what a process holds open, or mapped, of files that are gone."""
    names = {each.path for each in process.memory_maps(grouped=True)}
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            names.add(str(link.readlink()))
    return {name for name in names if name.endswith("(deleted)")}


@pytest.mark.timeout(120 + 10 * LOADS)
def test_after_each_unload_everything_is_back(broker, tmp_path, tiny_model):
    """A job loads the model, an order unloads it, as often as LOADS says."""
    daemon = AgentProcess(folder=tmp_path, broker=broker, models=[{"name": "tiny", "path": str(tiny_model)}])
    with daemon as agent, requester(broker) as client:
        agent.wait_said("engine.ready")
        process = psutil.Process(agent.pid)
        ours = deleted_files(process) & deleted_files(psutil.Process())  # what it has from us: its output is captured
        sizes, threads, files = [], [], []
        for number in range(LOADS):
            assert client.submit("edge-01", prompt=f"{number}", max_tokens=8).result(PATIENCE_S).state == "succeeded"
            (engine,) = agent.engines("edge_agent.engine.child")
            assert client.admin("edge-01", "unload", "tiny").result(PATIENCE_S).phase == "unloaded"
            assert process.children(recursive=True) == []
            assert not engine.is_running()
            assert deleted_files(process) == ours
            sizes.append(process.memory_info().rss)
            threads.append(process.num_threads())
            files.append(process.num_fds())
            assert sizes[-1] <= sizes[0] + GROWTH_BYTES, sizes
        assert sizes[-1] <= sizes[LOADS // 2] + LATE_BYTES, sizes
        assert threads[-1] <= threads[0] + PASSING, threads
        assert files[-1] <= files[0] + PASSING, files
        assert len(wait_for(lambda: agent.said("engine.unloaded"), "the log")) == LOADS
        sys.stdout.write(
            f"{LOADS} loads: the agent took {sizes[0] / 2**20:.1f} MiB, then {sizes[-1] / 2**20:.1f} MiB\n"
        )
        assert agent.stop() == 0
