"""The spool: images by hash, in parts, under a quota, and gone when nobody needs them."""

import hashlib

import pytest

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.images.spool import PART_BYTES, Holder, Spool

PHOTO = bytes(range(256)) * 8
SHA256 = hashlib.sha256(PHOTO).hexdigest()
NEW = Holder("me", set(), "image")
"""Somebody who needs no image yet."""


def lying(sha256, client="me"):
    """Return the name of the file with an image of a client."""
    kind = "w" if client.startswith("watch:") else "r"
    return f"{kind}{hashlib.sha256(client.encode()).hexdigest()[:32]}.{sha256}"


def opened(folder, **bounds):
    spool = Spool(
        folder / "images",
        **({"quota_bytes": 10_000, "requester_quota_bytes": 8000, "image_bytes": 5_000, "part_bytes": 1} | bounds),
    )
    spool.open()
    return spool


@pytest.fixture
def spool(tmp_path):
    return opened(tmp_path)


def files(folder):
    return sorted(str(file.relative_to(folder / "images")) for file in folder.rglob("images/**/*") if file.is_file())


def test_an_image_is_kept_once_and_over_a_restart(spool, tmp_path):
    assert spool.add(PHOTO, NEW) == spool.add(PHOTO, NEW) == SHA256
    assert files(tmp_path) == [lying(SHA256)]
    again = opened(tmp_path)
    assert again.has("me", SHA256)
    assert again.used_bytes == len(PHOTO)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (1, 1, 3, 2)])
def test_parts_make_an_image_in_any_order_repeated_and_over_a_restart(spool, tmp_path, order):
    pieces = {1: PHOTO[:1000], 2: PHOTO[1000:2000], 3: PHOTO[2000:]}
    for part in order[:-1]:
        assert not spool.add_part(SHA256, part=part, parts=3, content=pieces[part], holder=NEW)
    again = opened(tmp_path)
    assert again.used_bytes == len(PHOTO) - len(pieces[order[-1]])
    assert again.add_part(SHA256, part=order[-1], parts=3, content=pieces[order[-1]], holder=NEW)
    assert again.path("me", SHA256).read_bytes() == PHOTO
    assert files(tmp_path) == [lying(SHA256)]
    assert again.add_part(SHA256, part=1, parts=3, content=b"late repeat", holder=NEW)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_image_of_another_hash_is_refused_and_forgotten(spool, tmp_path, parts):
    for part in range(1, parts):
        spool.add_part(SHA256, part=part, parts=parts, content=b"not it", holder=NEW)
    with pytest.raises(EdgeAgentError, match=r"^sha256: ") as refused:
        spool.add_part(SHA256, part=parts, parts=parts, content=b"not it", holder=NEW)
    assert refused.value.code is Code.BAD_IMAGE
    assert files(tmp_path) == []
    assert spool.used_bytes == 0


def test_what_is_over_the_quota_is_refused_until_there_is_room(tmp_path):
    spool = opened(tmp_path, quota_bytes=3000)
    spool.add(PHOTO, NEW)
    with pytest.raises(EdgeAgentError) as refused:
        spool.add(PHOTO[::-1], NEW)
    assert (refused.value.code, refused.value.retryable) == (Code.STORAGE_FULL, True)
    with pytest.raises(EdgeAgentError, match="room"):
        spool.add_part("0" * 64, part=1, parts=9, content=bytes(1000), holder=NEW)
    spool.sweep((), ())
    assert spool.has("me", spool.add(PHOTO[::-1], NEW))


def test_what_is_watched_and_what_is_asked_for_have_room_apart(tmp_path):
    """Neither a camera nor a requester shuts the other out; and a rule may have a bound of its own."""
    spool = opened(tmp_path, quota_bytes=3000)
    watch = Holder("watch:yard", set(), "payload")
    for holder in (NEW, watch):
        spool.add(PHOTO, holder)
        with pytest.raises(EdgeAgentError, match="take all room"):
            spool.add_part("0" * 64, part=1, parts=2, content=bytes(1000), holder=holder)
    spool.sweep({("me", SHA256)}, ())
    assert opened(tmp_path, quota_bytes=3000).used_bytes == len(PHOTO)
    with pytest.raises(EdgeAgentError, match="may take 2000 bytes"):
        spool.add(PHOTO, Holder("watch:yard", set(), "payload", 2000))


def pieces(content):
    return (content[at : at + 500] for at in range(0, len(content), 500))


@pytest.mark.parametrize("way", ["add", "pieces", "part", "whole"])
def test_what_is_over_the_share_of_one_requester_is_refused_however_it_comes(tmp_path, way):
    """By field; nothing of it stays; others go on."""
    spool = opened(tmp_path, requester_quota_bytes=3000)
    other = PHOTO[::-1]
    sha256 = hashlib.sha256(other).hexdigest()
    full = Holder("me", {spool.add(PHOTO, NEW), sha256}, "messages.0.content.1.image_url")

    def bring(holder):
        match way:
            case "add":
                return spool.add(other, holder) == sha256
            case "pieces":
                return spool.add_pieces(pieces(other), len(other), holder) == sha256
            case "part":
                return not spool.add_part(sha256, part=1, parts=2, content=other[:1500], holder=holder)
            case "whole":
                return spool.add_part(sha256, part=1, parts=1, content=other, holder=holder)

    with pytest.raises(EdgeAgentError, match=r"^messages\.0\.content\.1\.image_url: .* 3000 bytes") as refused:
        bring(full)
    assert (refused.value.code, refused.value.retryable) == (Code.QUOTA_EXCEEDED, True)
    assert files(tmp_path) == [lying(SHA256)]
    assert bring(Holder("you", set(), "image"))


def test_an_image_that_several_jobs_need_counts_once(tmp_path):
    """Again it takes nothing of a requester's share; beside another of theirs it counts in full."""
    spool = opened(tmp_path, requester_quota_bytes=3000)
    theirs = Holder("me", {spool.add(PHOTO, NEW)}, "image")
    assert spool.add(PHOTO, theirs) == spool.add_pieces(pieces(PHOTO), len(PHOTO), theirs) == SHA256
    spool.share(SHA256, theirs)
    spool.share("0" * 64, theirs)
    elsewhere = Holder("me", {spool.add(PHOTO[::-1], NEW)}, "image")
    for take in (
        lambda: spool.add(PHOTO, elsewhere),
        lambda: spool.add_pieces(pieces(PHOTO), len(PHOTO), elsewhere),
        lambda: spool.share(SHA256, elsewhere),
    ):
        with pytest.raises(EdgeAgentError, match="your unfinished jobs"):
            take()


def test_parts_count_however_an_image_is_cut(tmp_path):
    """Sent as two parts, as three and as four, it is held three times; a part sent again is not."""
    spool = opened(tmp_path, requester_quota_bytes=3000)
    theirs = Holder("me", {SHA256}, "sha256")
    for parts in (2, 3, 3):
        spool.add_part(SHA256, part=1, parts=parts, content=PHOTO[:1024], holder=theirs)
    with pytest.raises(EdgeAgentError, match=r"^sha256: the images of your unfinished jobs"):
        spool.add_part(SHA256, part=1, parts=4, content=PHOTO[:1024], holder=theirs)


def test_an_image_over_its_bound_is_refused_also_in_parts(spool, tmp_path):
    with pytest.raises(EdgeAgentError) as refused:
        spool.add(bytes(5001), NEW)
    assert refused.value.code is Code.PAYLOAD_TOO_LARGE
    spool.add_part("0" * 64, part=1, parts=9, content=bytes(3000), holder=NEW)
    with pytest.raises(EdgeAgentError, match="over 5000 bytes"):
        spool.add_part("0" * 64, part=2, parts=9, content=bytes(3000), holder=NEW)


def test_a_sweep_removes_what_no_job_needs(spool, tmp_path):
    """Images, parts and what was decoded; at the start also what was being written."""
    other = spool.add(b"other", NEW)
    spool.add(PHOTO, NEW)
    spool.add_part("0" * 64, part=1, parts=2, content=b"x", holder=NEW)
    for row in (7, 8):
        spool.prepared(row).mkdir()
        (spool.prepared(row) / "0").write_bytes(b"rgb")
    spool.sweep({("me", other)}, {8})
    assert files(tmp_path) == ["prepared/8/0", lying(other)]
    (tmp_path / "images" / "image.new").write_bytes(b"half")
    opened(tmp_path)
    assert files(tmp_path) == [lying(other)]


def test_what_one_sends_and_lets_go_is_nothing_to_another(spool, tmp_path):
    """The same bytes from two are two files, whole or in parts; each goes when its own sender needs it no more."""
    you = Holder("you", set(), "image")
    assert spool.add(PHOTO, NEW) == spool.add(PHOTO, you)
    assert not spool.has("somebody", SHA256)
    assert not spool.add_part(SHA256, part=1, parts=2, content=PHOTO[:9], holder=Holder("somebody", set(), "image"))
    assert not spool.add_part(SHA256, part=2, parts=2, content=PHOTO[9:], holder=Holder("other", set(), "image"))
    with pytest.raises(EdgeAgentError, match="is not the hash of the payload"):
        spool.add_part(SHA256, part=1, parts=1, content=b"guessed", holder=Holder("other", set(), "image"))
    assert spool.used_bytes == 3 * len(PHOTO)
    spool.sweep({("you", SHA256)}, ())
    assert files(tmp_path) == [lying(SHA256, "you")]
    assert spool.path("you", SHA256).read_bytes() == PHOTO


def test_what_an_earlier_version_kept_goes_to_those_who_need_it(tmp_path):
    """It lay under its hash alone; parts begin anew."""
    folder = tmp_path / "images"
    (folder / f"{'1' * 64}.2").mkdir(parents=True)
    (folder / f"{'1' * 64}.2" / "1").write_bytes(b"part")
    (folder / SHA256).write_bytes(PHOTO)
    (folder / ("2" * 64)).write_bytes(b"nobody's")
    spool = opened(tmp_path)
    spool.sweep({("me", SHA256), ("you", SHA256), ("me", "1" * 64)}, ())
    assert files(tmp_path) == sorted(lying(SHA256, client) for client in ("me", "you"))
    assert spool.used_bytes == opened(tmp_path).used_bytes == 2 * len(PHOTO)
    assert spool.path("you", SHA256).read_bytes() == PHOTO


def test_what_is_not_ours_is_left_alone(spool, tmp_path):
    (tmp_path / "images" / "lost+found").mkdir()
    (tmp_path / "images" / "note").write_text("mine")
    spool.add_part("0" * 64, part=1, parts=2, content=b"x", holder=NEW)
    (tmp_path / "images" / f"{lying('0' * 64)}.2" / ".nfs0001").write_text("the file server's")
    again = opened(tmp_path)
    assert again.used_bytes == 1
    again.prepared("note").mkdir()
    (again.prepared("note") / "mine").write_text("mine")
    again.sweep((), ())
    assert files(tmp_path) == ["note", "prepared/note/mine"]
    assert again.used_bytes == 0


def test_a_disk_that_takes_nothing_is_told(spool, tmp_path):
    (tmp_path / "images" / "image.new").mkdir()
    with pytest.raises(EdgeAgentError, match="cannot store the image") as refused:
        spool.add(PHOTO, NEW)
    assert refused.value.code is Code.STORAGE_FULL


@pytest.mark.parametrize("content", [b"", b"x"])
def test_parts_with_next_to_nothing_in_them_count_as_what_the_disk_gives_them(tmp_path, content):
    """Else one requester could fill a disk with files and take nothing of any quota."""
    bounds = {"quota_bytes": 40 * PART_BYTES, "image_bytes": 2**20, "part_bytes": PART_BYTES}
    spool = opened(tmp_path, requester_quota_bytes=10 * PART_BYTES, **bounds)
    asked = [f"{number:064}" for number in range(9)]
    holder = Holder("me", set(asked), "image")
    for number in [*range(10), *range(10)]:  # what is sent again costs nothing
        spool.add_part(asked[number % 9], part=1 + number % 10, parts=4096, content=content, holder=holder)
    with pytest.raises(EdgeAgentError) as refused:
        spool.add_part(asked[0], part=99, parts=4096, content=content, holder=holder)
    assert refused.value.code is Code.QUOTA_EXCEEDED
    again = opened(tmp_path, requester_quota_bytes=10 * PART_BYTES, **bounds)
    assert again.used_bytes == spool.used_bytes == 10 * PART_BYTES
