"""A small HTTP server for machines on this device: few connections, none for long, nothing but GET."""

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from edge_agent.base.heartbeat import Heartbeat
from edge_agent.base.log import get_logger
from edge_agent.base.small_server import SmallServer

CONNECTIONS_MAX = 16
"""Connections at once; for a further one the oldest is cut off."""
CONNECTION_S = 10.0
"""How long a connection may live, whatever is said on it."""
RETRY_S = 5.0
"""How often an address that could not be had is tried again."""

log = get_logger()

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What is answered to a GET."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = TEXT


Routes = Mapping[str, Callable[[], HttpResponse]]
"""What answers, by path."""


class HttpServer:
    """Answers below an address with what its routes return, by path; an address that cannot be had is waited for.

    `trouble` says why nobody is answered, and is empty while they are.
    """

    def __init__(self, host: str, port: int, *, retry_s: float = RETRY_S) -> None:
        self.beat = Heartbeat("http")
        self.trouble = ""
        self._address = host, port
        self._handler: type[BaseHTTPRequestHandler]
        self._retry_s = retry_s
        self._server: _Server | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http")

    @property
    def port(self) -> int:
        """The port it listens on, once it does; chosen by the system when 0 was asked for."""
        return self._server.server_address[1] if self._server else self._address[1]

    def start(self, routes: Routes) -> None:
        """Begin to answer, at once if the address can be had."""
        self._handler = _handler(routes)
        self._server = self._listen()
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; what is being answered is cut off."""
        self._stopping.set()
        if self._server is not None:
            self._server.wake()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while self._server is None and not self._stopping.is_set():
            self.beat(self._retry_s)
            if not self._stopping.wait(self._retry_s):
                self._server = self._listen()
        if self._server is not None:
            self._server.serve(self._stopping, self.beat)
        self.beat.over()

    def _listen(self) -> "_Server | None":
        host, port = self._address
        try:
            server = _Server(self._address, self._handler)
        except (OSError, UnicodeError) as error:  # the latter for what can be no host's name
            trouble = f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}"
            if trouble != self.trouble:
                log.error("metrics.unserved", reason=trouble, next="set an address of this machine and a free port")
            self.trouble = trouble
            return None
        if self.trouble:
            log.info("metrics.served", host=host, port=port)
        self.trouble = ""
        return server


class _Server(SmallServer, HTTPServer):
    connections_max = CONNECTIONS_MAX
    connection_s = CONNECTION_S
    thread_name = "http-request"

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)


def _handler(routes: Routes) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "edge-agent"
        sys_version = ""
        timeout = CONNECTION_S

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            answer = route() if route else HttpResponse(b"not found\n", HTTPStatus.NOT_FOUND)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    return Handler
