"""A model hub on this machine: what the agent asks of one, and what can go wrong with it."""

import hashlib
import json
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Fault:
    """What becomes of one answer: another status, or a body that is cut, spoilt or too long."""

    status: int = 0
    headers: dict = field(default_factory=dict)
    cut_after: int | None = None
    spoilt: bool = False
    extra: bytes = b""
    stalls: bool = False
    shifted: bool = False
    body: bytes | None = None
    endless: bool = False


class Hub:
    """Publishes `files` (path -> content) as one repository at COMMIT; those in `large` have a sha256, as with LFS."""

    def __init__(self, files, *, repo="maker/model", large=(), bytes_per_s=None):
        self.files = dict(files)
        self.repo = repo
        self.large = set(large)
        self.bytes_per_s = bytes_per_s
        self.commit = COMMIT
        self.listed = None
        """What is listed instead of `files`: dictionaries as the hub sends them."""
        self.ranges = True
        self.cdn = None
        """Base address that downloads are redirected to."""
        self.token = None
        """What every request must carry."""
        self.faults = deque()
        """For the next downloads, one each."""
        self.listing_faults = deque()
        self.always = None
        """A fault for every download."""
        self.requests = []
        self.served_bytes = 0
        """Body bytes of files that were sent."""
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def entry(self, path):
        """A file as the hub lists it."""
        body = self.files[path]
        listed = {"rfilename": path, "size": len(body)}
        if path in self.large:
            sha256 = hashlib.sha256(body).hexdigest()
            return listed | {"blobId": "0" * 40, "lfs": {"sha256": sha256, "size": len(body), "pointerSize": 134}}
        return listed | {"blobId": hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()}

    def downloads(self, path=None):
        """The requests for files, or for one."""
        return [each for each in self.requests if "/resolve/" in each[0] and (path is None or each[0].endswith(path))]

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        hub = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 0

            def do_GET(self):
                hub._answer(self)

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.handle_error = lambda *_arguments: None  # clients are killed here all the time
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request):
        path = unquote(request.path.partition("?")[0])
        with self._lock:
            self.requests.append((path, {key.title(): value for key, value in request.headers.items()}))
        listing, download = f"/api/models/{self.repo}/revision/", f"/{self.repo}/resolve/"
        if self.token and "/cdn/" not in path and request.headers.get("Authorization") != f"Bearer {self.token}":
            self._send(request, 401)
        elif path.startswith(listing):
            self._list(request, path.removeprefix(listing))
        elif path.startswith((download, "/cdn/")):
            self._download(request, path.removeprefix(download).removeprefix("/cdn/").partition("/")[2])
        else:
            self._send(request, 404)

    def _list(self, request, revision):
        with self._lock:
            fault = self.listing_faults.popleft() if self.listing_faults else Fault()
        if fault.status:
            return self._send(request, fault.status, headers=fault.headers)
        if fault.endless:
            return self._send_without_end(request)
        if revision not in {"main", COMMIT, self.commit}:
            return self._send(request, 404, headers={"X-Error-Code": "RevisionNotFound"})
        files = [self.entry(path) for path in self.files] if self.listed is None else self.listed
        listed = {"id": self.repo, "sha": self.commit, "siblings": files}
        return self._send(request, 200, json.dumps(listed).encode() if fault.body is None else fault.body)

    def _download(self, request, name):
        with self._lock:
            fault = self.faults.popleft() if self.faults else self.always or Fault()
        if fault.status:
            return self._send(request, fault.status, headers=fault.headers)
        if name not in self.files:
            return self._send(request, 404, headers={"X-Error-Code": "EntryNotFound"})
        if self.cdn and not request.path.startswith("/cdn/"):
            return self._send(request, 302, headers={"Location": f"{self.cdn}/cdn/{self.commit}/{name}"})
        body = self.files[name]
        if fault.spoilt:
            body = bytes(byte ^ 1 for byte in body)
        return self._send_file(request, body, fault)

    def _send_file(self, request, body, fault):
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.ranges else 0
        headers = {}
        if asked and self.ranges:
            if start >= len(body) and not fault.extra:
                return self._send(request, 416, headers={"Content-Range": f"bytes */{len(body)}"})
            shown = start + 1 if fault.shifted else start
            headers["Content-Range"] = f"bytes {shown}-{len(body) - 1}/{len(body)}"
        piece = body[start:] + fault.extra
        request.send_response(206 if headers else 200)
        for key, value in (headers | {"Content-Length": str(len(piece))}).items():
            request.send_header(key, value)
        request.end_headers()
        self._stream(request, piece[: fault.cut_after], stalls=fault.stalls)
        request.close_connection = True
        return None

    def _stream(self, request, body, *, stalls):
        for offset in range(0, len(body), PIECE_BYTES):
            piece = body[offset : offset + PIECE_BYTES]
            began_s = time.monotonic()
            request.wfile.write(piece)
            with self._lock:
                self.served_bytes += len(piece)
            if self.bytes_per_s and self._stop.wait(max(0, began_s + len(piece) / self.bytes_per_s - time.monotonic())):
                return
        if stalls:
            self._stop.wait(600)

    def _send(self, request, status, body=b"", headers=None):
        request.send_response(status)
        for key, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)

    def _send_without_end(self, request):
        request.send_response(200)
        request.end_headers()
        while not self._stop.is_set():
            request.wfile.write(bytes(PIECE_BYTES))
