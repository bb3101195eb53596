"""The spool: images by hash, in parts, under a quota, and gone when nobody needs them."""

import contextlib
import errno
import hashlib
import itertools
import os
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import Code, EdgeAgentError
from edge_agent.images.part_file import HEAD_BYTES, PartFile
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
    assert again.used_bytes == 2 * HEAD_BYTES + len(PHOTO) - len(pieces[order[-1]])
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
    assert spool.spare("me", 3000)
    for parts in (2, 3, 3):
        spool.add_part(SHA256, part=1, parts=parts, content=PHOTO[:1024], holder=theirs)
    with pytest.raises(EdgeAgentError, match=r"^sha256: the images of your unfinished jobs"):
        spool.add_part(SHA256, part=1, parts=4, content=PHOTO[:1024], holder=theirs)
    assert not spool.spare("me", 1024)
    assert spool.spare("you", 3000)


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
    assert spool.used_bytes == 3 * len(PHOTO) + 2 * HEAD_BYTES
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
    (tmp_path / "images" / ".nfs0001").write_text("the file server's")
    again = opened(tmp_path)
    assert again.used_bytes == HEAD_BYTES + 1
    again.prepared("note").mkdir()
    (again.prepared("note") / "mine").write_text("mine")
    again.sweep((), ())
    assert files(tmp_path) == [".nfs0001", "note", "prepared/note/mine"]
    assert again.used_bytes == 0


def test_a_disk_that_takes_nothing_is_told(spool, tmp_path):
    (tmp_path / "images" / "image.new").mkdir()
    with pytest.raises(EdgeAgentError, match="cannot store the image") as refused:
        spool.add(PHOTO, NEW)
    assert refused.value.code is Code.STORAGE_FULL


def test_what_comes_of_an_image_in_parts_counts_as_what_the_disk_gives_it(tmp_path):
    """Else one requester could fill a disk, and take nothing of any quota; what is sent again costs nothing."""
    bounds = {"quota_bytes": 40 * PART_BYTES, "image_bytes": 2**20, "part_bytes": PART_BYTES}
    spool = opened(tmp_path, requester_quota_bytes=10 * PART_BYTES, **bounds)
    asked = [f"{number:064}" for number in range(11)]
    holder = Holder("me", set(asked), "image")
    for number in [*range(10), *range(10)]:
        spool.add_part(asked[number], part=1, parts=4096, content=b"x", holder=holder)
    with pytest.raises(EdgeAgentError) as refused:
        spool.add_part(asked[10], part=99, parts=4096, content=b"x", holder=holder)
    assert refused.value.code is Code.QUOTA_EXCEEDED
    again = opened(tmp_path, requester_quota_bytes=10 * PART_BYTES, **bounds)
    assert again.used_bytes == spool.used_bytes == 10 * PART_BYTES


# What parts cost


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("part"),
            st.sampled_from(["me", "you", "watch:yard"]),
            st.integers(0, 2),
            st.integers(1, 3),
            st.integers(2, 3),
            st.integers(0, 9),
        ),
        st.tuples(st.just("whole"), st.sampled_from(["me", "you"]), st.integers(0, 2)),
        st.tuples(st.just("sweep"), st.sets(st.integers(0, 2))),
        st.just(("sync",)),
        st.just(("restart",)),
    ),
    max_size=40,
)
IMAGES = [PHOTO[:20], PHOTO[:27], PHOTO[:1]]
NAMES = [hashlib.sha256(each).hexdigest() for each in IMAGES]


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_running_totals_are_what_lies_there(steps):
    """Whatever comes, of any size, again, wrong, whole or in parts, is swept or found again at a start."""
    with tempfile.TemporaryDirectory() as folder:
        spool = opened(Path(folder))
        for step, *of in steps:
            if step == "part" and of[2] <= of[3]:
                client, which, part, parts, size = of
                content = IMAGES[which][part * 9 - 9 : part * 9] if size == 9 else bytes(size)
                with contextlib.suppress(EdgeAgentError):
                    holder = Holder(client, set(), "image")
                    spool.add_part(NAMES[which], part=part, parts=parts, content=content, holder=holder)
            elif step == "whole":
                spool.add(IMAGES[of[1]], Holder(of[0], set(), "image"))
            elif step == "sweep":
                spool.sweep({(client, NAMES[each]) for client in ("me", "watch:yard") for each in of[0]}, ())
            elif step == "sync":
                spool.sync()
            elif step == "restart":
                spool = opened(Path(folder))
            lying_bytes = Counter()
            for file in (Path(folder) / "images").iterdir():
                if file.is_file():
                    size_bytes = file.stat().st_size
                    for name in {file.name[0], file.name.split(".")[0], ".".join(file.name.split(".")[:2])}:
                        lying_bytes[name] += size_bytes
            assert spool._taken == lying_bytes


def syncs(monkeypatch):
    """Count how often the disk is waited for."""
    done, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append(descriptor), fsync(descriptor)))
    return done


def test_however_many_parts_of_an_image_come_together_the_disk_is_waited_for_twice(tmp_path, monkeypatch):
    """Once for the folder, as the first comes; each further group of them waits once."""
    spool = opened(tmp_path, part_bytes=PART_BYTES)
    done = syncs(monkeypatch)
    for part in range(1, 1001):
        spool.add_part(SHA256, part=part, parts=4096, content=b"x", holder=NEW)
    assert done == []
    spool.sync()
    assert len(done) == 2
    spool.sync()
    assert len(done) == 2
    spool.add_part(SHA256, part=1001, parts=4096, content=b"x", holder=NEW)
    spool.sync()
    assert len(done) == 3


def test_parts_of_another_hash_cost_the_disk_no_wait(tmp_path, monkeypatch):
    spool = opened(tmp_path)
    done = syncs(monkeypatch)
    for _ in range(5):
        spool.add_part(SHA256, part=1, parts=2, content=b"x", holder=NEW)
        with pytest.raises(EdgeAgentError, match="another hash"):
            spool.add_part(SHA256, part=2, parts=2, content=b"y", holder=NEW)
    assert done == []
    spool.sync()
    assert len(done) == 1  # the folder


def test_what_the_disk_does_not_take_is_forgotten_and_what_it_has_stays(spool, tmp_path, monkeypatch):
    """Parts of which nobody was told are sent again; those that were told are not."""
    spool.add_part(SHA256, part=1, parts=3, content=PHOTO[:1000], holder=NEW)
    spool.sync()
    spool.add_part(SHA256, part=2, parts=3, content=PHOTO[1000:2000], holder=NEW)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
        with pytest.raises(OSError, match="I/O error"):
            spool.sync()
    assert spool.used_bytes == HEAD_BYTES + 1000
    for again in (spool, opened(tmp_path)):
        again.sync()
        assert not again.add_part(SHA256, part=3, parts=3, content=PHOTO[2000:], holder=NEW)
    assert again.add_part(SHA256, part=2, parts=3, content=PHOTO[1000:2000], holder=NEW)
    assert again.path("me", SHA256).read_bytes() == PHOTO


@given(
    st.dictionaries(st.integers(1, 9), st.binary(min_size=1, max_size=40), min_size=1), st.floats(0, 1), st.booleans()
)
def test_what_was_half_written_when_the_agent_died_is_cut_off(parts, cut, zeros):
    """Whole parts before it stay, and the others may come again; a file system may leave zeros where nothing is yet."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "parts"
        written = PartFile(file)
        for part, content in parts.items():
            written.add(part, content)
        whole_bytes = file.stat().st_size
        kept_bytes = int(cut * whole_bytes)
        os.truncate(file, kept_bytes)
        if zeros:
            os.truncate(file, whole_bytes + 20)
        ends = itertools.accumulate(HEAD_BYTES + len(content) for content in parts.values())
        here = sum(end <= kept_bytes for end in ends)
        again = PartFile(file)
        assert len(again) in ({here, here + 1} if zeros else {here})
        for part, content in [*parts.items()][here:]:
            again.add(part, content)
        assert b"".join(again.pieces()) == b"".join(parts[part] for part in sorted(parts))


def test_parts_that_an_earlier_version_kept_begin_anew(tmp_path):
    """They lay in a folder."""
    folder = tmp_path / "images" / f"{lying(SHA256)}.2"
    folder.mkdir(parents=True)
    (folder / "1").write_bytes(PHOTO[:1000])
    spool = opened(tmp_path)
    assert spool.used_bytes == 0
    assert not spool.add_part(SHA256, part=2, parts=2, content=PHOTO[1000:], holder=NEW)
    assert spool.add_part(SHA256, part=1, parts=2, content=PHOTO[:1000], holder=NEW)
