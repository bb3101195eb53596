"""A broker that answers no CONNECT of ours: both reasons are told, and the doctor finds out which it is."""

import socket
import threading
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from authority import Authority, mosquitto_tls
from fakes import PATIENCE_S
from running import wait_for

from edge_agent.client.client import EdgeClient
from edge_agent.doctor import broker as doctor
from edge_agent.doctor import greeting
from edge_agent.mqtt.access import Access
from edge_agent.mqtt.private_broker import PrivateBroker
from edge_agent.settings.load import Settings


@contextmanager
def listener(serve):
    """Serve each connection on a thread of its own."""
    threads = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        yield SimpleNamespace(host="127.0.0.1", port=server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
    for thread in (accepting, *threads):
        thread.join(PATIENCE_S)


def mute(client):
    """Read until the client is tired of it."""
    with suppress(OSError), client:
        while client.recv(1024):
            pass


def old(client):
    """Answer MQTT 3.1.1 only; say nothing to anybody else."""
    with suppress(OSError), client:
        said = client.recv(1024)
        if said[8:9] == b"\4":
            client.sendall(b"\x20\2\0\0")
        while said:
            said = client.recv(1024)


def hangs_up_on_new(client):
    with suppress(OSError), client:
        if client.recv(1024)[8:9] == b"\4":
            client.sendall(b"\x20\2\0\5")


@pytest.mark.parametrize("serve", [mute, old])
def test_while_nothing_is_answered_both_reasons_are_told(serve):
    """At once, not only when paho gives up after its keepalive."""
    with listener(serve) as server, EdgeClient(Access(server.host, server.port, client_id="me")) as client:
        said = wait_for(lambda: client.trouble, "a word of it")
        assert "mqtt.tls = true" in said
        assert "3.1.1" in said
        assert "says nothing to our greeting" in said


def login(server):
    settings = Settings(agent={"id": "edge-01"}, mqtt={"host": server.host, "port": server.port})
    (found,) = [each for each in doctor.look(settings) if each.about == "login"]
    return found


@pytest.mark.parametrize("serve", [old, hangs_up_on_new])
def test_the_doctor_finds_a_broker_of_mqtt_3_1_1(serve, monkeypatch):
    monkeypatch.setattr(doctor, "CONNECT_S", 0.5)
    monkeypatch.setattr(greeting, "ANSWER_S", 0.5)
    with listener(serve) as server:
        assert greeting.OLD.reason in login(server).said


@pytest.mark.broker
def test_the_doctor_finds_a_broker_that_wants_tls(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "CONNECT_S", 0.5)
    authority = Authority(tmp_path / "tls")
    tls = mosquitto_tls(authority, authority.issue("broker"))
    with PrivateBroker(folder=tmp_path / "broker", settings=tls) as broker:
        assert greeting.TLS.reason in login(broker).said


@pytest.mark.broker
def test_the_doctor_takes_a_refusal_for_what_it_is(tmp_path):
    """It speaks 3.1.1 as well."""
    acl = tmp_path / "passwords"
    acl.write_text("")
    with PrivateBroker(folder=tmp_path / "broker", password_file=acl) as broker:
        assert "refuses us" in login(broker).said
