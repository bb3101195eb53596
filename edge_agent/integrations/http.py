"""A small HTTP server for machines on this device: few connections, none for long, nothing but GET."""

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edge_agent.awake import awake_s
from edge_agent.beat import Beat

CONNECTIONS_MAX = 8
"""Connections at once; a further one is closed unheard."""
CONNECTION_S = 10.0
"""How long a connection may live, whatever is said on it."""
POLL_S = 0.5
"""How often that is looked after."""

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a GET."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = TEXT


class HttpServer:
    """Answers below an address with what `routes` return, by path. Raises OSError when the address cannot be had."""

    def __init__(self, host: str, port: int, *, routes: Mapping[str, Callable[[], Answer]]) -> None:
        self.beat = Beat("http")
        self._server = _Server((host, port), _handler(routes), beat=self.beat)
        self.port: int = self._server.server_address[1]
        """The port it listens on; chosen by the system when 0 was asked for."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="http")

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; what is being answered is cut off."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self.beat.over()
        self._server.server_close()
        self._server.cut(float("inf"))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], *, beat: Beat) -> None:
        self._beat = beat
        self._ends_s: dict[Any, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the library's signature
        return len(self._ends_s) < CONNECTIONS_MAX

    def process_request(self, request: Any, client_address: Any) -> None:
        self._ends_s[request] = awake_s() + CONNECTION_S
        threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name="http-request", daemon=True
        ).start()

    def shutdown_request(self, request: Any) -> None:
        self._ends_s.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._beat(POLL_S)
        self.cut(awake_s())

    def cut(self, now_s: float) -> None:
        """End the connections whose time has passed; their threads see it as an end of what is said."""
        for request in [each for each, end_s in self._ends_s.copy().items() if end_s <= now_s]:
            try:
                request.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended meanwhile
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """Leave a broken connection to its end; any other fault is ours, and ends the agent as everywhere."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            raise error


def _handler(routes: Mapping[str, Callable[[], Answer]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "edge-agent"
        sys_version = ""
        timeout = CONNECTION_S

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            answer = route() if route else Answer(b"not found\n", HTTPStatus.NOT_FOUND)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    return Handler
