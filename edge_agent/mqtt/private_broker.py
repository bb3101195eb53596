"""A private mosquitto, for the demo and for tests: a child on loopback that ends with its parent."""

import errno
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

HOST = "127.0.0.1"

PORTS = range(20_000, 32_000)
"""Below the ports Linux gives to outgoing connections (from 32768, `ip_local_port_range`): else a client that
redials while the broker is down could be given the broker's own port."""

MAX_PACKET_BYTES = 8 * 2**20
"""A photo in one message fits; a runaway publisher does not."""

START_S = 10.0
LOOK_S = 0.02
STOP_S = 10.0
PORT_ATTEMPTS = 10

IN_USE = os.strerror(errno.EADDRINUSE)
"""mosquitto prints the C library's own words."""


class BrokerMissingError(Exception):
    """A program the private broker needs is not installed; the message carries the install line."""


class BrokerError(Exception):
    """The private broker is not running; the message says what mosquitto said."""


def find_mosquitto(path: str | None = None) -> str:
    """Return the mosquitto program found in `path`, a list of folders as in PATH.

    Without `path`: PATH, then where Debian and source builds put it, which a user's PATH often lacks.
    Raises BrokerMissingError.
    """
    if path is None:
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    return _find("mosquitto", package="mosquitto", path=path)


def random_port() -> int:
    """Return a port that may be free; PrivateBroker draws again when it is not."""
    return secrets.choice(PORTS)


class PrivateBroker:
    """A mosquitto of our own on 127.0.0.1; it runs from `start` to `stop`, or inside a `with` block.

    folder: configuration, log and saved state; a broker started again on it has its sessions and queues back.
    port: drawn by `draw_port` until one is free when None; after the first start it never changes.
    settings: further lines of mosquitto's configuration.
    acl_file, password_file: as in mosquitto.conf; without a password file everyone may connect.
    max_packet_size: MQTT's Maximum Packet Size, in bytes, told to clients in CONNACK.

    The kernel kills the broker when the *thread* that called `start` ends, however it ends.
    """

    def __init__(
        self,
        *,
        folder: Path,
        port: int | None = None,
        settings: str = "",
        acl_file: Path | None = None,
        password_file: Path | None = None,
        max_packet_size: int = MAX_PACKET_BYTES,
        draw_port: Callable[[], int] = random_port,
    ) -> None:
        self.folder = folder
        self.host = HOST
        self._port = port
        self._settings = settings
        self._acl_file = acl_file
        self._password_file = password_file
        self._max_packet_size = max_packet_size
        self._draw_port = draw_port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port. Raises BrokerError before the first start when none was given."""
        if self._port is None:
            raise BrokerError("the private broker has no port yet: start it first, or give it one")
        return self._port

    @property
    def pid(self) -> int:
        """The process id of the running mosquitto. Raises BrokerError when it does not run."""
        if self._process is None or self._process.poll() is not None:
            raise BrokerError("the private broker does not run: start it first")
        return self._process.pid

    @property
    def log(self) -> Path:
        """What mosquitto said, over all starts."""
        return self.folder / "mosquitto.log"

    def start(self) -> None:
        """Start mosquitto and wait until it listens; a running one is left alone.

        Raises BrokerMissingError without mosquitto, BrokerError with its own words when it does not come up.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if self._port is not None:
            self._start(self._port)
            return
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = self._draw_port()
            try:
                self._start(port)
            except BrokerError as error:
                if IN_USE not in str(error) or attempt == PORT_ATTEMPTS:
                    raise
            else:
                self._port = port
                return

    def stop(self) -> None:
        """End mosquitto, which saves its state first; after 10 s it is killed. No broker, no effect."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End mosquitto at once: what it has not saved for up to 5 s is lost. No broker, no effect."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(STOP_S)

    def _start(self, port: int) -> None:
        command = self._command(self._write_config(port))
        with self.log.open("ab") as log:
            said_before = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C is for the parent alone, which needs its broker while it stops
            )
        try:
            self._wait_until_listening(self._process, port)
        except BrokerError as error:
            self.kill()
            said = self.log.read_bytes()[said_before:].decode(errors="replace").strip()
            raise BrokerError(f"{error}. mosquitto said:\n{said or '(nothing)'}") from None

    def _command(self, config: Path) -> list[str]:
        # setpriv, because code of ours between fork and exec can deadlock in a program with threads
        setpriv = _find("setpriv", package="util-linux")
        return [setpriv, "--pdeathsig", "KILL", "--", find_mosquitto(), "-c", str(config)]

    def _write_config(self, port: int) -> Path:
        state = self.folder.absolute() / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            f"listener {port} {HOST}",
            f"allow_anonymous {'false' if self._password_file else 'true'}",
            "persistence true",
            f"persistence_location {state}/",
            "autosave_interval 5",
            "set_tcp_nodelay true",
            "max_queued_messages 10000",
            f"max_packet_size {self._max_packet_size}",
        ]
        if os.geteuid() == 0:
            # Started by root, mosquitto would become the user `mosquitto`: it could not write our folder, and
            # the change of user makes the kernel forget the death signal (prctl(2)). It hears loopback only.
            lines.append("user root")
        if self._acl_file:
            lines.append(f"acl_file {self._acl_file.absolute()}")
        if self._password_file:
            lines.append(f"password_file {self._password_file.absolute()}")
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join([*lines, self._settings, ""]), encoding="utf-8")
        return config

    @staticmethod
    def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
        for _ in range(int(START_S / LOOK_S)):
            try:
                code = process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                if _listens(process.pid, port):
                    return
            else:
                raise BrokerError(f"the private broker on port {port} ended with status {code}")
        raise BrokerError(f"the private broker does not listen on port {port} after {START_S:.0f} s")


def _find(program: str, *, package: str, path: str | None = None) -> str:
    found = shutil.which(program, path=path)
    if found is None:
        raise BrokerMissingError(f"{program} is not installed; install it with: sudo apt-get install {package}")
    return found


def _listens(pid: int, port: int) -> bool:
    """Whether this very process listens: a connection could reach another broker on the same port."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(end.status == psutil.CONN_LISTEN and end.laddr.port == port for end in sockets)
