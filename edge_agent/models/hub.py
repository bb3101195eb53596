"""The fetching child: brings one variant from the hub into the store, and goes on where an earlier one was killed.

Run as `python -m edge_agent.models.hub --parent PID`, with an `Order` on its standard input; its standard output says
how far it is. Its parent's death is its own. huggingface_hub tells what is published; the bytes are fetched here, since
its own downloads begin anew after a kill (it writes to a name of its own for each process: its pull request 4228).
"""

import argparse
import contextlib
import ctypes
import email.utils
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.models.fetch import ORDER, SAID, Done, Hub, Order, Progress, Refused, present
from edge_agent.models.listing import Published, Wanted, select
from edge_agent.models.manifest import Manifest, StoredFile
from edge_agent.models.part import Part
from edge_agent.models.store import Store, writing

ORDER_BYTES_MAX = 2**20
ADDRESS_SPACE_BYTES = 512 * 2**20
"""Bound on this process, which takes 60 MB, for a hub whose listing has no end."""
TELL_S = 0.1
"""Seconds between two words on how far it is."""
RETRY_AFTER_MAX_S = 120.0
"""The longest pause a hub may ask for; beyond it the pull ends and says so."""
GAIN_BYTES = 2**20
"""What a try must bring to count as progress: a hub that sends drops would be asked for ever."""
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15  # linux/prctl.h
_COMMIT = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the order on standard input; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent.models.hub", description=__doc__)
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    settle(parser.parse_args(arguments).parent)
    channel = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print where they like

    def tell(said: Progress | Refused | Done) -> None:
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
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the call above, which then tells nobody
        sys.exit(0)
    prctl(_PR_SET_NAME, b"ea-fetch")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C hits the whole group; the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))


class _PassingError(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, fault: str, retry_after_s: float | None = None) -> None:
        super().__init__(fault)
        self.retry_after_s = retry_after_s


class Pull:
    """One order."""

    def __init__(
        self, order: Order, tell: Callable[[Progress], None], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._variant = order.variant
        self._hub = order.hub
        self._store = Store(order.folder, quota_bytes=order.quota_bytes, margin_bytes=order.margin_bytes)
        self._tell = tell
        self._sleep = sleep
        self._token = read_token(order.hub)
        self._told_s = 0.0
        self._before_bytes = 0
        self._total_bytes = 0

    def run(self) -> None:
        """Bring the variant into the store. Raises EdgeAgentError."""
        name = self._variant.name
        with self._store.locked(name, wait=lambda pid: self._tell(Progress("waiting", pid=pid))):
            if present(self._store, self._variant) is not None:
                return
            self._tell(Progress("asking"))
            commit, published = self._persist(self._published)
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

    def _published(self) -> tuple[str, list[Published]]:
        """Return the commit the variant's revision stands for now, and the files of that commit."""
        variant = self._variant
        api = huggingface_hub.HfApi(endpoint=self._hub.url, token=self._token or False)
        with self._asking(f"{variant.repo} at {variant.revision}"):
            try:
                info = api.model_info(
                    variant.repo, revision=variant.revision, files_metadata=True, timeout=self._hub.timeout_s
                )
                commit = info.sha or ""
                files = [
                    Published(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None, each.blob_id)
                    for each in info.siblings or ()
                ]
            except (ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
                if isinstance(error, HfHubHTTPError):
                    raise
                raise self._refused(
                    "does not answer like a model hub; check models.hub_url and the catalogue's repo"
                ) from error
        if not _COMMIT.fullmatch(commit) or (variant.pinned and not commit.startswith(variant.revision)):
            raise self._refused(f"has no revision {variant.revision} of {variant.repo}; mend the catalogue's entry")
        return commit, files

    def _file(self, commit: str, wanted: Wanted, folder: Path) -> StoredFile:
        """Have a file in the folder, whole and verified."""
        part = Part(folder / wanted.name, wanted, lambda have: self._say("checking", wanted, have))
        with contextlib.closing(part):
            self._persist(lambda: self._receive(commit, part), lambda: part.most_bytes)
            if not part.is_right():  # a piece may have been spoilt on the way or on this disk
                part.restart()
                self._persist(lambda: self._receive(commit, part), lambda: part.most_bytes)
            if not part.is_right():
                part.restart()
                word = "the catalogue knows" if wanted.vouched == "catalogue" else "it announced"
                raise self._refused(f"sent {wanted.name} twice with another hash than {word}; try another mirror")
            return StoredFile(
                name=wanted.name, size_bytes=wanted.size_bytes, sha256=part.sha256, vouched=wanted.vouched
            )

    def _receive(self, commit: str, part: "Part") -> None:
        """Fetch what is missing of a file. Raises _PassingError when it is cut off, EdgeAgentError when refused."""
        wanted = part.wanted
        if part.have_bytes == wanted.size_bytes:
            return
        url = huggingface_hub.hf_hub_url(self._variant.repo, wanted.path, revision=commit, endpoint=self._hub.url)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={part.have_bytes}-"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"  # kept from other hosts when we are sent there
        with (
            self._asking(wanted.name),
            huggingface_hub.get_session().stream("GET", url, headers=headers, timeout=self._hub.timeout_s) as response,
        ):
            if response.status_code >= 400:
                raise self._failed(response.status_code, response.headers, wanted.name)
            if response.status_code != 206:  # a mirror that does not know ranges begins anew
                part.restart()
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {part.have_bytes}-"):
                raise self._refused(f"sent another piece of {wanted.name} than was asked for; try another mirror")
            for piece in response.iter_raw():  # as it comes: a cut would lose what is gathered here
                if part.have_bytes + len(piece) > wanted.size_bytes:
                    part.restart()
                    raise self._refused(f"sent more of {wanted.name} than it announced; try another mirror")
                part.add(piece)
                self._say("fetching", wanted, part.have_bytes)
        if part.have_bytes < wanted.size_bytes:
            raise _PassingError(f"{wanted.name} ended after {part.have_bytes} of {wanted.size_bytes} bytes")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn the library's exceptions into ours."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise EdgeAgentError(
                Code.MODEL_MISSING, "HF_HUB_OFFLINE is set, which forbids fetching; unset it or import the build"
            ) from error
        except HfHubHTTPError as error:
            raise self._failed(error.response.status_code, error.response.headers, what) from error
        except httpx2.HTTPError as error:
            raise _PassingError(f"{what}: {str(error) or type(error).__name__}") from error

    def _failed(self, status: int, headers: Mapping[str, str], what: str) -> Exception:
        """Return the exception for a status that is no success."""
        if status in {408, 425, 429} or status >= 500:
            return _PassingError(f"{what}: status {status}", retry_after_s(headers.get("Retry-After"), time.time()))
        token = "the token in models.token_file" if self._token else "no token (see models.token_file)"
        sentences = {
            401: f"does not let us at {what} with {token}; or there is no {self._variant.repo}",
            403: f"refuses {what} with {token}; accept the model's terms on its page, or ask its owner",
            404: f"has no {what}; mend repo, revision and folder of {self._variant.name} in the catalogue",
            416: f"has less of {what} than it announced; try another mirror",
        }
        return self._refused(sentences.get(status, f"answers {what} with status {status}; check models.hub_url"))

    def _refused(self, fault: str) -> EdgeAgentError:
        return EdgeAgentError(Code.MODEL_MISSING, f"{self._hub.url} {fault}")

    def _persist(self, attempt: Callable[[], T], brought_bytes: Callable[[], int] = lambda: 0) -> T:
        """Try until it succeeds, fails for good, or fails too often without bringing anything."""
        failures, best_bytes = 0, brought_bytes()
        while True:
            try:
                return attempt()
            except _PassingError as error:
                failures += 1
                if brought_bytes() >= best_bytes + GAIN_BYTES:
                    failures, best_bytes = 1, brought_bytes()
                pause_s = error.retry_after_s
                if pause_s is None:
                    pause_s = min(RETRY_AFTER_MAX_S, self._hub.backoff_s * 2 ** (failures - 1))
                if failures >= self._hub.attempts or pause_s > RETRY_AFTER_MAX_S:
                    raise EdgeAgentError(
                        Code.MODEL_MISSING,
                        f"{self._hub.url} cannot be fetched from: {error}; what has arrived is kept: run it again"
                        f"{f' in {pause_s:.0f} s' if pause_s >= 1 else ''}, after a look at the network and "
                        "models.hub_url; without a network use: edge-agent models import",
                        retry_after_s=pause_s,
                    ) from error
                self._sleep(pause_s)

    def _say(self, phase: Literal["checking", "fetching"], wanted: Wanted, have_bytes: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._told_s + TELL_S or have_bytes == wanted.size_bytes:
            self._told_s = now_s
            self._tell(Progress(phase, wanted.name, self._before_bytes + have_bytes, self._total_bytes))


def read_token(hub: Hub) -> str | None:
    """Return the hub's access token; None when none is set. Raises EdgeAgentError MODEL_MISSING when it is unusable."""
    if hub.token_file is None:
        return None
    try:
        token = hub.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeAgentError(
            Code.MODEL_MISSING, f"models.token_file: {hub.token_file} cannot be read: {type(error).__name__}"
        ) from error
    if not re.fullmatch(r"[!-~]{1,1024}", token):
        raise EdgeAgentError(
            Code.MODEL_MISSING, f"models.token_file: {hub.token_file} holds no token on its first line"
        )
    if not hub.url.startswith("https://") and urlsplit(hub.url).hostname not in {"127.0.0.1", "::1", "localhost"}:
        raise EdgeAgentError(
            Code.MODEL_MISSING, "models.token_file: a token goes over https only; mend models.hub_url or unset the file"
        )
    return token


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Return how long a hub asks to wait, as seconds or a date says; None when it says nothing we understand."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}", header.strip()):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now_s)
    except ValueError:
        return None


def _missing_bytes(folder: Path, wanted: Sequence[Wanted]) -> int:
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
