"""What the service manager hears of us, on a real socket."""

import os
import secrets
import socket

import pytest

from edge_agent.service.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A manager's socket, and its name as systemd writes it."""
    abstract = request.param == "abstract"
    name = f"@edge-agent-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name[1:]}" if abstract else name)
        sock.setblocking(False)
        yield sock, name


def heard(sock):
    said = []
    while True:
        try:
            said.append(sock.recv(65_536).decode())
        except BlockingIOError:
            return said


def test_everything_is_said_as_sd_notify_3_writes_it(manager):
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 3.0
    notifier.extend(1.5)
    notifier.ready()
    notifier.status("ready, connected")
    notifier.status("ready, connected")
    notifier.status("two\nREADY=0 lines")
    notifier.alive()
    notifier.stopping()
    assert heard(sock) == [
        "EXTEND_TIMEOUT_USEC=1500000",
        "READY=1",
        "STATUS=ready, connected",
        "STATUS=two READY=0 lines",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}])
def test_a_watchdog_that_is_not_ours_is_not_fed(manager, environ):
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, **environ})
    notifier.alive()
    assert (notifier.watchdog_s, heard(sock)) == (None, [])


@pytest.mark.parametrize("name", ["", "/none/notify", "@edge-agent-nobody-listens"])
def test_nothing_depends_on_a_manager(name):
    Notifier({"NOTIFY_SOCKET": name}).ready()


def test_a_manager_that_does_not_read_holds_nobody_up_and_hears_the_status_later(manager):
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000"})
    for _ in range(10_000):
        notifier.alive()
    notifier.status("ready")
    assert set(heard(sock)) == {"WATCHDOG=1"}
    notifier.status("ready")
    assert heard(sock) == ["STATUS=ready"]
