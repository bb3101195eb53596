"""Images of a request on their way in: data URLs and files below allowed folders become hashes."""

import base64
import hashlib
import json
import os

import pytest
from fakes import request

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.images.attachments import attach
from edge_agent.images.spool import Holder, Spool
from edge_agent.jobs.request import Request

PNG = b"\x89PNG\r\n\x1a\n and the rest"
SHA256 = hashlib.sha256(PNG).hexdigest()
FIELD = "messages.0.content.1.image_url"


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "images", quota_bytes=10_000, requester_quota_bytes=10_000, image_bytes=5_000)
    spool.open()
    return spool


def asked(*urls):
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return request(prompt=None, messages=[{"role": "user", "content": content}])


def data_url(content=PNG, head="data:image/png;base64,"):
    return head + base64.b64encode(content).decode()


def mine():
    return Holder("me", set(), "messages")


def refusal(spool, url, folders=()):
    with pytest.raises(EdgeAgentError) as refused:
        attach(asked(url), spool=spool, folders=folders, holder=mine())
    assert refused.value.message.startswith(f"{FIELD}: ")
    return refused.value


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:;base64,", "data:image/jpeg;charset=x;BASE64,"])
def test_a_data_url_becomes_the_hash_of_what_it_holds(spool, head):
    """And its detail stays; what is stored is a request that parses again."""
    given = asked({"url": data_url(head=head), "detail": "low"}, data_url())
    attached = attach(given, spool=spool, folders=(), holder=mine())
    assert attached.here == {SHA256: True}
    assert spool.path("me", SHA256).read_bytes() == PNG
    stored = Request.model_validate_json(attached.request.to_json())
    assert [(image.sha256, image.detail) for image in stored.images] == [(SHA256, "low"), (SHA256, "auto")]
    assert "base64" not in attached.request.to_json()


@pytest.mark.parametrize(
    "spell",
    [
        lambda content: base64.encodebytes(content).decode(),  # MIME: a line end every 76 characters
        lambda content: base64.encodebytes(content).decode().replace("\n", "\r\n"),
        lambda content: base64.b64encode(content).decode().rstrip("="),
        lambda content: base64.urlsafe_b64encode(content).decode(),
        lambda content: base64.urlsafe_b64encode(content).decode().rstrip("=") + "\n",
    ],
    ids=["lines", "lines of MIME", "no padding", "url-safe", "url-safe, no padding, a line end"],
)
@pytest.mark.parametrize("more", range(3))
def test_base64_is_taken_in_all_its_spellings(spool, spell, more):
    content = PNG + bytes(range(0x3E, 0x100)) + bytes(more)
    attached = attach(asked(f"data:image/png;base64,{spell(content)}"), spool=spool, folders=(), holder=mine())
    ((sha256, here),) = attached.here.items()
    assert here
    assert spool.path("me", sha256).read_bytes() == content


def test_a_hash_is_looked_up(spool):
    parts = [
        {"type": "image_sha256", "sha256": "f" * 64},
        {"type": "image_sha256", "sha256": spool.add(PNG, mine())},
    ]
    given = request(prompt=None, messages=[{"role": "user", "content": parts}])
    assert attach(given, spool=spool, folders=(), holder=mine()).here == {"f" * 64: False, SHA256: True}
    theirs = Holder("somebody", set(), "messages")
    assert attach(given, spool=spool, folders=(), holder=theirs).here == {"f" * 64: False, SHA256: False}


@pytest.mark.parametrize(
    "url",
    [
        "data:,hello",
        "data:image/png;base64,%%%",
        "data:image/png;base64,AAAAA",
        data_url() + "!!!!",
        data_url(b""),
        data_url(b"<svg></svg>"),
    ],
)
def test_what_holds_no_image_is_refused_by_field(spool, url):
    assert refusal(spool, url).code is Code.BAD_IMAGE
    assert spool.used_bytes == 0


@pytest.mark.parametrize("url", ["http://camera/a.jpg", "https://x/", "ftp://x/", "a.jpg", "DATA:image/png;base64,"])
def test_nothing_is_fetched_from_the_network(url):
    for spelled in (url, {"url": url}):
        with pytest.raises(ValueError, match="nothing is fetched from the network"):
            asked(spelled)


# Files


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "camera"
    (folder / "door").mkdir(parents=True)
    (folder / "door" / "a b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_below_an_allowed_folder_is_taken(spool, folder, host):
    attached = attach(asked(f"file://{host}{folder}/door/a%20b.png"), spool=spool, folders=(folder,), holder=mine())
    assert attached.here == {SHA256: True}


@pytest.mark.parametrize(
    "path",
    [
        "/link.png",
        "/away/secret.png",
        "/../secret.png",
        "/door/../../secret.png",
        "/%2e%2e/secret.png",
        "/absent.png",
        "/pipe.png",
        "/door",
        "",
        "/",
    ],
)
def test_no_way_leads_out_of_the_folder(spool, folder, path):
    """Not by links, not by dots; what is forbidden and what is absent sound the same."""
    error = refusal(spool, f"file://{folder}{path}", folders=(folder,))
    assert error.message == f"{FIELD}: names no file below the folders in images.folders of the agent's settings"
    assert spool.used_bytes == 0


def test_without_an_allowed_folder_no_file_is_read(spool, folder):
    assert refusal(spool, f"file://{folder}/door/a%20b.png").code is Code.BAD_IMAGE
    assert refusal(spool, f"file://{folder}-else/a.png", folders=(folder,)).code is Code.BAD_IMAGE


@pytest.mark.parametrize(
    "url",
    [
        *("file:a.png", "file://elsewhere/a.png", "file:///a%00.png", "file:///a.png?x"),
        *("file://[", "file://[::1/a.png", "file://\u2100/a.png"),
    ],
)
def test_a_file_url_of_another_form_is_refused(spool, url):
    assert refusal(spool, url, folders=("/",)).code is Code.BAD_REQUEST


def test_the_request_stays_what_it_was(spool):
    """What makes two requests the same is what was sent, not how it is stored."""
    given = asked(data_url())
    before = json.loads(given.to_json())
    attach(given, spool=spool, folders=(), holder=mine())
    assert json.loads(given.to_json()) == before
