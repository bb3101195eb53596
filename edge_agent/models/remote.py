"""The hub, as a pull asks it: what is published, and the bytes of a file from where we have them.

huggingface_hub tells what there is. Its own downloads begin anew after a kill, since each process writes to a name of
its own (its pull request 4228), so the bytes come through its HTTP client alone. Every fault becomes an EdgeAgentError
with what to do, or a PassingError when it may be gone at the next try.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

import httpx2
import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.retry_after import retry_after_s
from edge_agent.models.catalogue import Variant
from edge_agent.models.fetch import Hub
from edge_agent.models.listing import Published
from edge_agent.models.partial_file import PartialFile

_COMMIT = re.compile(r"[0-9a-f]{40}")


class TransientError(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, fault: str, retry_after_s: float | None = None) -> None:
        super().__init__(fault)
        self.retry_after_s = retry_after_s


class Remote:
    """One variant's repository. Raises EdgeAgentError when the token cannot be used."""

    def __init__(self, hub: Hub, variant: Variant) -> None:
        self._hub = hub
        self._variant = variant
        self._token = read_token(hub)

    def published(self) -> tuple[str, list[Published]]:
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
                raise self.refused(
                    "does not answer like a model hub; check models.hub_url and the catalogue's repo"
                ) from error
        if not _COMMIT.fullmatch(commit) or (variant.pinned and not commit.startswith(variant.revision)):
            raise self.refused(f"has no revision {variant.revision} of {variant.repo}; mend the catalogue's entry")
        return commit, files

    def receive(self, commit: str, part: PartialFile, told: Callable[[int], None]) -> None:
        """Fetch what is missing of a file. Raises PassingError when it is cut off, EdgeAgentError when refused."""
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
                raise self.refused(f"sent another piece of {wanted.name} than was asked for; try another mirror")
            for piece in response.iter_raw():  # as it comes: a cut would lose what is gathered here
                if part.have_bytes + len(piece) > wanted.size_bytes:
                    part.restart()
                    raise self.refused(f"sent more of {wanted.name} than it announced; try another mirror")
                part.add(piece)
                told(part.have_bytes)
        if part.have_bytes < wanted.size_bytes:
            raise TransientError(f"{wanted.name} ended after {part.have_bytes} of {wanted.size_bytes} bytes")

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
            raise TransientError(f"{what}: {str(error) or type(error).__name__}") from error

    def _failed(self, status: int, headers: Mapping[str, str], what: str) -> Exception:
        """Return the exception for a status that is no success."""
        if status in {408, 425, 429} or status >= 500:
            pause_s = retry_after_s(headers.get("Retry-After"), time.time(), sent=headers.get("Date"))
            return TransientError(f"{what}: status {status}", pause_s)
        token = "the token in models.token_file" if self._token else "no token (see models.token_file)"
        sentences = {
            401: f"does not let us at {what} with {token}; or there is no {self._variant.repo}",
            403: f"refuses {what} with {token}; accept the model's terms on its page, or ask its owner",
            404: f"has no {what}; mend repo, revision and folder of {self._variant.name} in the catalogue",
            416: f"has less of {what} than it announced; try another mirror",
        }
        return self.refused(sentences.get(status, f"answers {what} with status {status}; check models.hub_url"))

    def refused(self, fault: str) -> EdgeAgentError:
        """Return the error that says what the hub did; `fault` goes on after its address."""
        return EdgeAgentError(Code.MODEL_MISSING, f"{self._hub.address} {fault}")


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
