"""A server on this machine that speaks OpenAI's chat completions as documented, and misbehaves as it is told.

Written from platform.openai.com/docs/api-reference/chat: `create` with `stream` and `stream_options.include_usage`,
"the chat completion chunk object", and the error object of the guide to error codes. Nothing of it is computed.
"""

import json
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chunk(text=None, *, reason=None, **fields):
    """Return an event of a stream: a piece of the answer."""
    delta = {} if text is None else {"content": text}
    return event(choices=[{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], **fields)


def usage(prompt_tokens, completion_tokens, cached_tokens=0):
    """Return the event that follows the last piece when it was asked for."""
    counts = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
    }
    return event(choices=[], usage=counts)


def event(**fields):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps(head | fields)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
CUT, HANG = object(), object()
"""In place of a piece: the connection ends there, or nothing more comes until the other end goes."""


def words(*texts, reason="stop", counts=(7, None)):
    """Return a whole answer, in pieces."""
    first = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
    tokens = len(texts) if counts[1] is None else counts[1]
    return Answer([first, *map(chunk, texts), chunk(reason=reason), usage(counts[0], tokens), DONE])


@dataclass(frozen=True)
class Answer:
    """What one request gets: the status, headers, and the pieces of the body."""

    pieces: list
    status: int = 200
    headers: tuple = ()


def error(status, message="no", headers=(), **fields):
    """Return a refusal, in the form of the documented error object."""
    fault = {"message": message, "type": "invalid_request_error", "param": None, "code": None} | fields
    return Answer([json.dumps({"error": fault}).encode()], status, tuple(headers))


class Upstream:
    """Answers one request after another as it was told, then with `words("done")`; keeps what it was asked."""

    def __init__(self, *answers, tls=None):
        self.answers = deque(answers)
        self.asked = []
        self.gone = threading.Event()
        """Set when somebody whose answer hangs has closed the connection."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.tls = tls is not None
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.server_port}/v1"

    @property
    def bodies(self):
        """The bodies of the requests."""
        return [body for _path, _headers, body in self.asked]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(upstream):  # noqa: N805 - `self` is the handler below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream.asked.append((self.path, dict(self.headers), json.loads(body)))
                answer = upstream.answers.popleft() if upstream.answers else words("done")
                if answer is CUT:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", "text/event-stream" if answer.status == 200 else "application/json")
                self.send_header("Transfer-Encoding", "chunked")
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self._send(answer.pieces)

            def _send(self, pieces):
                try:
                    for piece in pieces:
                        if piece is CUT:
                            self.close_connection = True
                            return
                        if piece is HANG:
                            self.rfile.read(1)
                            raise ConnectionError  # noqa: TRY301 - the same end as below
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    self.wfile.write(b"0\r\n\r\n")
                except ConnectionError:
                    self.close_connection = True
                    upstream.gone.set()

            def log_message(self, *_arguments):
                pass

        return Handler
