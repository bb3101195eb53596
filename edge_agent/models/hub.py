"""The fetching child: brings one variant from the hub into the store, and goes on where an earlier one was killed.

Run as `python -m edge_agent.models.hub --parent PID`, with an `Order` on its standard input; its standard output says
how far it is. It dies with its parent.
"""

import argparse
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from edge_agent.base.child_process import tie
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.models.build_store import BuildStore, writing
from edge_agent.models.fetch import ORDER, SAID, Done, FetchOrder, PullProgress, Refused, present
from edge_agent.models.listing import WantedFile, select
from edge_agent.models.manifest import Manifest, StoredFile
from edge_agent.models.partial_file import PartialFile
from edge_agent.models.programs import is_program
from edge_agent.models.remote import Remote, TransientError

ORDER_BYTES_MAX = 2**20
ADDRESS_SPACE_BYTES = 512 * 2**20
"""Bound on this process, which takes 60 MB, for a hub whose listing has no end."""
TELL_S = 0.1
"""Seconds between two words on how far it is."""
RETRY_AFTER_MAX_S = 120.0
"""The longest pause a hub may ask for; beyond it the pull ends and says so."""
GAIN_BYTES = 2**20
"""What a try must bring to count as progress: a hub that sends drops would be asked for ever."""

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the order on standard input; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.models.hub", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    settle(parser.parse_args(arguments).parent)
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print where they like

    def tell(said: PullProgress | Refused | Done) -> None:
        os.write(channel, SAID.dump_json(said) + b"\n")

    try:
        Pull(ORDER.validate_json(sys.stdin.buffer.read(ORDER_BYTES_MAX)), tell).run()
    except EdgeAgentError as error:
        tell(Refused(error.code, error.message, error.retry_after_s))
        return 1
    tell(Done())
    return 0


def settle(parent: int) -> None:
    """Tie this process to its parent and bound its memory. Exits if the parent is gone already."""
    tie(parent, name="ea-fetch")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C hits the whole group; the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


class Pull:
    """One order."""

    def __init__(
        self, order: FetchOrder, tell: Callable[[PullProgress], None], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._variant = order.variant
        self._hub = order.hub
        self._store = BuildStore(order.folder, quota_bytes=order.quota_bytes, margin_bytes=order.margin_bytes)
        self._tell = tell
        self._sleep = sleep
        self._remote = Remote(order.hub, order.variant)
        self._told_s = 0.0
        self._before_bytes = 0
        self._total_bytes = 0

    def run(self) -> None:
        """Bring the variant into the store. Raises EdgeAgentError."""
        name = self._variant.name
        with self._store.locked(name, wait=lambda pid: self._tell(PullProgress("waiting", pid=pid))):
            if present(self._store, self._variant) is not None:
                return
            self._tell(PullProgress("asking"))
            commit, published = self._persist(self._remote.published)
            wanted = select(self._variant, published)
            folder = self._store.partial(name, commit)
            self._store.discard(name, lambda key: key != commit)
            with writing(folder):
                missing_bytes = _missing_bytes(folder, wanted)
            self._total_bytes = sum(each.size_bytes for each in wanted)
            self._store.make_room(name, missing_bytes=missing_bytes, size_bytes=self._total_bytes)
            files = []
            for each in wanted:
                files.append(self._file(commit, each, folder))
                self._before_bytes += each.size_bytes
            manifest = Manifest(
                name=name,
                repo=self._variant.repo,
                revision=commit,
                origin="pulled",
                at=datetime.now(UTC),
                files=tuple(files),
            )
            self._store.publish(folder, manifest)

    def _file(self, commit: str, wanted: WantedFile, folder: Path) -> StoredFile:
        """Have a file in the folder, whole and verified."""
        part = PartialFile(folder / wanted.name, wanted, lambda have: self._say("checking", wanted, have))

        def receive() -> None:
            self._remote.receive(commit, part, lambda have: self._say("fetching", wanted, have))

        with contextlib.closing(part):
            self._persist(receive, lambda: part.most_bytes)
            if not part.is_right():  # a piece may have been spoilt on the way or on this disk
                part.restart()
                self._persist(receive, lambda: part.most_bytes)
            if not part.is_right():
                part.restart()
                word = "the catalogue knows" if wanted.vouched == "catalogue" else "it announced"
                raise self._remote.refused(
                    f"sent {wanted.name} twice with another hash than {word}; try another mirror"
                )
            if is_program(folder / wanted.name):
                part.restart()
                raise self._remote.refused(f"has a program called {wanted.name} in this build; get it elsewhere")
            return StoredFile(
                name=wanted.name, size_bytes=wanted.size_bytes, sha256=part.sha256, vouched=wanted.vouched
            )

    def _persist(self, attempt: Callable[[], T], brought_bytes: Callable[[], int] = lambda: 0) -> T:
        """Try until it succeeds, fails for good, or fails too often without bringing anything."""
        failures, best_bytes = 0, brought_bytes()
        while True:
            try:
                return attempt()
            except TransientError as error:
                failures += 1
                if brought_bytes() >= best_bytes + GAIN_BYTES:
                    failures, best_bytes = 1, brought_bytes()
                pause_s = error.retry_after_s
                if pause_s is None:
                    pause_s = min(RETRY_AFTER_MAX_S, self._hub.backoff_s * 2 ** (failures - 1))
                if failures >= self._hub.attempts or pause_s > RETRY_AFTER_MAX_S:
                    raise EdgeAgentError(
                        Code.MODEL_MISSING,
                        f"{self._hub.address} cannot be fetched from: {error}; what has arrived is kept: run it again"
                        f"{f' in {pause_s:.0f} s' if pause_s >= 1 else ''}, after a look at the network and "
                        "models.hub_url; without a network use: edge-agent models import",
                        retry_after_s=pause_s,
                    ) from error
                self._sleep(pause_s)

    def _say(self, phase: Literal["checking", "fetching"], wanted: WantedFile, have_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._told_s + TELL_S or have_bytes == wanted.size_bytes:
            self._told_s = now_s
            self._tell(PullProgress(phase, wanted.name, self._before_bytes + have_bytes, self._total_bytes))


def _missing_bytes(folder: Path, wanted: Sequence[WantedFile]) -> int:
    """Return how much is still to come, and remove from the folder what does not belong to the build."""
    known = {each.name for each in wanted}
    missing_bytes = sum(each.size_bytes for each in wanted)
    for path in folder.iterdir():
        if path.name in known:
            missing_bytes -= path.lstat().st_size
        else:
            path.unlink()
    return missing_bytes


if __name__ == "__main__":
    sys.exit(main())
