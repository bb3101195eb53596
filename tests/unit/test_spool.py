"""The spool: images by hash, in parts, under a quota, and gone when nobody needs them."""

import hashlib

import pytest

from edge_agent.errors import Code, EdgeAgentError
from edge_agent.jobs.spool import Spool

PHOTO = bytes(range(256)) * 8
SHA256 = hashlib.sha256(PHOTO).hexdigest()


def opened(folder, **bounds):
    spool = Spool(folder / "images", **({"quota_bytes": 10_000, "image_bytes": 5_000} | bounds))
    spool.open()
    return spool


@pytest.fixture
def spool(tmp_path):
    return opened(tmp_path)


def files(folder):
    return sorted(str(file.relative_to(folder / "images")) for file in folder.rglob("images/**/*") if file.is_file())


def test_an_image_is_kept_once_and_over_a_restart(spool, tmp_path):
    assert spool.add(PHOTO) == spool.add(PHOTO) == SHA256
    assert files(tmp_path) == [SHA256]
    again = opened(tmp_path)
    assert again.has(SHA256)
    assert again.used_bytes == len(PHOTO)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (1, 1, 3, 2)])
def test_parts_make_an_image_in_any_order_repeated_and_over_a_restart(spool, tmp_path, order):
    pieces = {1: PHOTO[:1000], 2: PHOTO[1000:2000], 3: PHOTO[2000:]}
    for part in order[:-1]:
        assert not spool.add_part(SHA256, part=part, parts=3, content=pieces[part])
    again = opened(tmp_path)
    assert again.used_bytes == len(PHOTO) - len(pieces[order[-1]])
    assert again.add_part(SHA256, part=order[-1], parts=3, content=pieces[order[-1]])
    assert again.path(SHA256).read_bytes() == PHOTO
    assert files(tmp_path) == [SHA256]
    assert again.add_part(SHA256, part=1, parts=3, content=b"late repeat")


@pytest.mark.parametrize("parts", [1, 2])
def test_an_image_of_another_hash_is_refused_and_forgotten(spool, tmp_path, parts):
    for part in range(1, parts):
        spool.add_part(SHA256, part=part, parts=parts, content=b"not it")
    with pytest.raises(EdgeAgentError, match=r"^sha256: ") as refused:
        spool.add_part(SHA256, part=parts, parts=parts, content=b"not it")
    assert refused.value.code is Code.BAD_IMAGE
    assert files(tmp_path) == []
    assert spool.used_bytes == 0


def test_what_is_over_the_quota_is_refused_until_there_is_room(tmp_path):
    spool = opened(tmp_path, quota_bytes=3000)
    spool.add(PHOTO)
    with pytest.raises(EdgeAgentError) as refused:
        spool.add(PHOTO[::-1])
    assert (refused.value.code, refused.value.retryable) == (Code.STORAGE_FULL, True)
    with pytest.raises(EdgeAgentError, match="room"):
        spool.add_part("0" * 64, part=1, parts=9, content=bytes(1000))
    spool.sweep((), ())
    assert spool.has(spool.add(PHOTO[::-1]))


def test_an_image_over_its_bound_is_refused_also_in_parts(spool, tmp_path):
    with pytest.raises(EdgeAgentError) as refused:
        spool.add(bytes(5001))
    assert refused.value.code is Code.PAYLOAD_TOO_LARGE
    spool.add_part("0" * 64, part=1, parts=9, content=bytes(3000))
    with pytest.raises(EdgeAgentError, match="over 5000 bytes"):
        spool.add_part("0" * 64, part=2, parts=9, content=bytes(3000))


def test_a_sweep_removes_what_no_job_needs(spool, tmp_path):
    """Images, parts and what was decoded; at the start also what was being written."""
    other = spool.add(b"other")
    spool.add(PHOTO)
    spool.add_part("0" * 64, part=1, parts=2, content=b"x")
    for row in (7, 8):
        spool.prepared(row).mkdir()
        (spool.prepared(row) / "0").write_bytes(b"rgb")
    spool.sweep({other}, {8})
    assert files(tmp_path) == [other, "prepared/8/0"]
    (tmp_path / "images" / "image.new").write_bytes(b"half")
    opened(tmp_path)
    assert files(tmp_path) == [other]


def test_what_is_not_ours_is_left_alone(spool, tmp_path):
    (tmp_path / "images" / "lost+found").mkdir()
    (tmp_path / "images" / "note").write_text("mine")
    again = opened(tmp_path)
    again.sweep((), ())
    assert files(tmp_path) == ["note"]
    assert again.used_bytes == 0


def test_a_disk_that_takes_nothing_is_told(spool, tmp_path):
    (tmp_path / "images" / "image.new").mkdir()
    with pytest.raises(EdgeAgentError, match="cannot store the image") as refused:
        spool.add(PHOTO)
    assert refused.value.code is Code.STORAGE_FULL
