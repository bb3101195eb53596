"""The connection to a server that speaks OpenAI's chat completions.

Nobody is followed elsewhere, no proxy is asked, nothing is unpacked, and no word of a server's errors is repeated.
"""

import asyncio
import re
import ssl
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx2

from edge_agent.base.awake import awake_s
from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.base.retry_after import retry_after_s
from edge_agent.engine.openai.wire import LINE_BYTES_MAX, AnswerPiece, Lines, read, refusal
from edge_agent.settings.upstream import UpstreamSection

LIBRARY = f"httpx2 {httpx2.__version__}"
WRITE_S = 60.0
"""How long a piece of the request may take to leave."""
_KEY = re.compile(r"[!-~]{1,4096}")


class AwakeLoop(asyncio.SelectorEventLoop):
    """A loop whose time-outs stand still while this process does: frozen, it cannot hear the server."""

    def __init__(self, now_s: Callable[[], float] = awake_s) -> None:
        self._now_s = now_s
        super().__init__()

    def time(self) -> float:
        """Return the time that time-outs are counted by."""
        return self._now_s()


class Server:
    """One server, asked over as many connections as there are answers under way.

    Raises EdgeAgentError MODEL_ERROR when the key or the certificates cannot be read.
    """

    def __init__(self, upstream: UpstreamSection) -> None:
        self._upstream = upstream
        self._url = f"{upstream.url.rstrip('/')}/chat/completions"
        read_key(upstream)
        self._client = httpx2.AsyncClient(
            verify=_certificates(upstream.tls_ca_file),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=upstream.connect_s, write=WRITE_S),
            limits=httpx2.Limits(max_connections=None),
        )

    async def ask(self, body: bytes) -> AsyncGenerator[AnswerPiece, None]:
        """Send a request; give the pieces of the answer. Closing the iterator closes the connection.

        Raises EdgeAgentError for a refusal, with the server's `retry_after_s`, and for what breaks on the way.
        """
        host, answering = self._upstream.host, False
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "Accept-Encoding": "identity"}
        if (key := read_key(self._upstream)) is not None:
            headers["Authorization"] = f"Bearer {key}"
        lines = Lines()
        try:
            async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    raise await _refused(response)
                answering = True
                async for each in response.aiter_raw():
                    for line in lines.feed(each):
                        if (piece := read(line)) is not None:
                            yield piece
        except httpx2.HTTPError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise EdgeAgentError(
                    Code.MODEL_ERROR, f"{host} cannot prove who it is; set tls_ca_file, or mend url or its certificate"
                ) from None
            what = "broke off its answer" if answering else "cannot be reached"
            raise EdgeAgentError(Code.ENGINE_DIED, f"{host} {what} ({type(error).__name__})") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def read_key(upstream: UpstreamSection) -> str | None:
    """Return the key; None when there is none. Raises EdgeAgentError MODEL_ERROR, without a word of it."""
    if upstream.key_file is None:
        return None
    try:
        key = upstream.key_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeAgentError(Code.MODEL_ERROR, f"key_file cannot be read: {type(error).__name__}") from None
    if not _KEY.fullmatch(key):
        raise EdgeAgentError(Code.MODEL_ERROR, "key_file holds no key on one line")
    return key


def _certificates(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # SSLError is one
        raise EdgeAgentError(Code.MODEL_ERROR, f"tls_ca_file cannot be used: {type(error).__name__}") from None


async def _refused(response: Any) -> EdgeAgentError:
    """Return what a status that is no success means, with no more of its text read than an error takes."""
    body = b""
    async for each in response.aiter_raw():
        body += each
        if len(body) > LINE_BYTES_MAX:
            break
    error = refusal(response.status_code, body[:LINE_BYTES_MAX])
    error.retry_after_s = retry_after_s(
        response.headers.get("Retry-After"), time.time(), sent=response.headers.get("Date")
    )
    return error
