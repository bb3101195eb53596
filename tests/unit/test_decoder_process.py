"""The image child and the parent's end of it: real images, bad ones, and a child that dies, hangs or chatters."""

import hashlib
import itertools
import os
import signal
import sys
import threading
from pathlib import Path

import images
import pytest
from PIL import Image

from edge_agent.images.decoder_process import BadImageError, DecoderProcess, FullError, bound_bytes

GOOD, BAD, ODD = images.good(), images.bad(), images.odd()
PIXELS = 64_000_000


@pytest.fixture(scope="module")
def decoder_process():
    with DecoderProcess(pixels=PIXELS) as decoder_process:
        yield decoder_process


@pytest.fixture
def shelf(tmp_path):
    def put(content):
        file = tmp_path / "image"
        file.write_bytes(content)
        return file

    return put


def develop(decoder_process, file, *, long_side=1344):
    """Return what was said of an image, and the image that was written."""
    out = file.with_name("out")
    done = decoder_process.develop(file, long_side=long_side, out=out)
    content = out.read_bytes()
    assert done.sha256 == hashlib.sha256(content).hexdigest()
    assert (done.width, done.height) == decoder_process.measure(file)
    return done, Image.frombytes("RGB", (done.used_width, done.used_height), content)


def near(image, at, colour, tolerance=40):
    found = image.getpixel(at)
    return all(abs(one - other) <= tolerance for one, other in zip(found, colour, strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_image_is_decoded(decoder_process, shelf, name):
    develop(decoder_process, shelf(GOOD[name]))


@pytest.mark.parametrize(
    "name", [name for name in GOOD if "turned" in name or "cmyk" in name or name in {"bmp", "webp"}]
)
def test_an_image_is_upright_and_in_its_colours(decoder_process, shelf, name):
    done, image = develop(decoder_process, shelf(GOOD[name]))
    assert (done.width, done.height) == (64, 48)
    assert near(image, (16, 40), (255, 0, 0))
    assert near(image, (56, 40), (0, 0, 255))
    assert near(image, (2, 2), (255, 255, 255), tolerance=90)


def test_what_is_transparent_is_white(decoder_process, shelf):
    """Also in half: by the palette, by a colour, by a channel."""
    for name in ("png-alpha", "webp-alpha", "png-grey-alpha"):
        _, image = develop(decoder_process, shelf(GOOD[name]))
        assert near(image, (30, 0), (255, 255, 255), tolerance=12), name
    _, image = develop(decoder_process, shelf(GOOD["png-colour-key"]))
    assert near(image, (16, 40), (255, 255, 255))
    clear = Image.new("P", (9, 9))
    clear.putpalette([255, 0, 0])
    _, image = develop(decoder_process, shelf(images.encoded(clear, transparency=0)))
    assert image.getpixel((4, 4)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["png-16", "tiff-16"])
def test_sixteen_bits_become_eight(decoder_process, shelf, name):
    _, image = develop(decoder_process, shelf(GOOD[name]))
    assert [image.getpixel((0, y))[0] for y in (0, 128, 255)] == [0, 128, 255]


def test_a_png_that_says_late_how_it_lies_is_turned(decoder_process, shelf):
    """The chunk may stand behind the pixels."""
    early = images.turned(6, "PNG")
    begin = early.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(early[begin : begin + 4], "big")
    late = early[:begin] + early[end:-12] + early[begin:end] + early[-12:]
    file = shelf(late)
    done = decoder_process.develop(file, long_side=336, out=file.with_name("out"))
    assert (done.width, done.height) == (64, 48)


def test_of_several_frames_the_first_is_taken(decoder_process, shelf):
    _, image = develop(decoder_process, shelf(GOOD["gif-frames"]))
    assert near(image, (10, 10), (255, 0, 0))


@pytest.mark.parametrize(
    ("size", "used"), [((1000, 500), (672, 336)), ((500, 1000), (336, 672)), ((600, 600), (600, 600))]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_image_is_scaled_down_in_its_proportions_and_a_small_one_not(decoder_process, shelf, size, used, kind):
    done, image = develop(decoder_process, shelf(images.encoded(images.picture(*size), kind)), long_side=672)
    assert (done.width, done.height) == size
    assert (done.used_width, done.used_height) == used
    assert near(image, (used[0] // 4, used[1] * 3 // 4), (255, 0, 0))
    assert near(image, (used[0] * 3 // 4, used[1] * 3 // 4), (0, 0, 255))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_told_so_and_the_child_lives(decoder_process, shelf, name):
    decoder_process.measure(shelf(GOOD["png"]))
    pid = decoder_process.pid
    file = shelf(BAD[name])
    with pytest.raises(BadImageError) as refused:
        decoder_process.develop(file, long_side=336, out=file.with_name("out"))
    assert str(refused.value).startswith(("is ", "has ", "holds ", "takes "))
    assert decoder_process.pid == pid


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_shown_all_the_same(decoder_process, shelf, name):
    """A note that cannot be read turns nothing, further frames and what follows the image are not looked at."""
    done, _ = develop(decoder_process, shelf(ODD[name]), long_side=336)
    assert max(done.used_width, done.used_height) <= 336


def test_the_child_is_bounded_in_memory_processor_time_and_files(decoder_process, shelf):
    """By the kernel, as proc(5) shows it: what holds however a decoder behaves."""
    decoder_process.measure(shelf(GOOD["png"]))
    lines = Path(f"/proc/{decoder_process.pid}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines[1:]}
    assert int(soft["Max address space"]) == bound_bytes(PIXELS)
    assert 10 <= int(soft["Max cpu time"]) < 60
    assert (soft["Max file size"], soft["Max core file size"]) == (str(64 * 2**20), "0")
    assert Path(f"/proc/{decoder_process.pid}/oom_score_adj").read_text().strip() == "1000"


def refused(decoder_process, file):
    """Return why an image was not decoded."""
    with pytest.raises(BadImageError) as refused:
        decoder_process.develop(file, long_side=336, out=file.with_name("out"))
    return str(refused.value)


def test_an_image_that_takes_more_memory_than_the_kernel_gives_is_told(decoder_process, shelf):
    """Of no more pixels than allowed, in 46 bytes: its decoder keeps four copies of 255 MB."""
    assert refused(decoder_process, shelf(images.WEBP_64_MP)).startswith(
        "takes more memory to decode than an image may"
    )
    peak = next(
        line for line in Path(f"/proc/{decoder_process.pid}/status").read_text().splitlines() if "VmPeak" in line
    )
    assert int(peak.split()[1]) * 1024 <= bound_bytes(PIXELS)
    assert decoder_process.measure(shelf(GOOD["png"])) == (64, 48)


def test_an_image_that_is_not_decoded_in_time_ends_the_child_and_not_the_next_image(shelf):
    """Of allowed size in bytes and pixels: a second of computing in every 3 kB."""
    with DecoderProcess(pixels=PIXELS, image_s=1.0) as decoder_process:
        assert refused(decoder_process, shelf(images.jpeg_of_scans(500))) == "was not decoded after 1 s"
        assert decoder_process.pid is None
        assert decoder_process.measure(shelf(GOOD["png"])) == (64, 48)


def test_an_image_that_takes_more_processor_time_than_the_kernel_gives_is_told(shelf):
    """Should the clock's bound not come first."""
    program = "import sys, edge_agent.images.decoder_child as it; sys.argv[-1] = '1'; it.main()"
    with DecoderProcess(pixels=PIXELS, command=(sys.executable, "-c", program)) as decoder_process:
        assert refused(decoder_process, shelf(images.jpeg_of_scans(500))) == "takes too long to decode"
        assert decoder_process.measure(shelf(GOOD["png"])) == (64, 48)


def test_an_image_cut_anywhere_is_told_so_or_shown(decoder_process, shelf):
    """JPEG, PNG, WebP, TIFF and GIF, at 40 places each."""
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF"):
        whole = images.encoded(images.picture(300, 200).convert("P" if kind == "GIF" else "RGB"), kind)
        for cut in range(0, len(whole), max(1, len(whole) // 40)):
            file = shelf(whole[:cut])
            try:
                decoder_process.develop(file, long_side=336, out=file.with_name("out"))
            except BadImageError as error:
                assert str(error)  # noqa: PT017 - either is right
    assert decoder_process.measure(shelf(GOOD["png"])) == (64, 48)


def test_more_pixels_than_an_image_may_have_is_a_sentence(shelf):
    with (
        DecoderProcess(pixels=10_000) as decoder_process,
        pytest.raises(BadImageError, match="more than the 10000 pixels"),
    ):
        decoder_process.measure(shelf(images.encoded(images.picture(200, 100))))


def scripted(program, **settings):
    return DecoderProcess(pixels=PIXELS, command=(sys.executable, "-c", program), **settings)


def test_a_child_that_hangs_is_killed_at_the_bound(shelf):
    with scripted("import time; time.sleep(600)", image_s=0.3) as decoder_process:
        with pytest.raises(BadImageError, match="was not decoded after"):
            decoder_process.measure(shelf(b""))
        assert decoder_process.pid is None


def test_a_child_that_computes_too_long_is_ended_by_the_kernel(shelf):
    program = "import os, signal; input(); os.kill(os.getpid(), signal.SIGXCPU)"
    with scripted(program) as decoder_process, pytest.raises(BadImageError, match="takes too long to decode"):
        decoder_process.measure(shelf(b""))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit(3)", "exit 3"),
        ("import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("print('x' * 9000, flush=True); input(); input()", "said something else"),
    ],
)
def test_a_child_that_dies_twice_under_an_image_is_told(shelf, program, reason):
    with scripted(program) as decoder_process, pytest.raises(BadImageError, match=f"twice .*{reason}"):
        decoder_process.measure(shelf(b""))


def test_a_second_child_has_what_the_first_left_of_the_time(shelf):
    """So nothing waits longer than the bound for an image under which children die."""
    looks = itertools.count(0.0, 6.0)
    dies = "input()"
    with scripted(dies, now_s=lambda: next(looks)) as decoder_process, pytest.raises(BadImageError, match="after 10 s"):
        decoder_process.measure(shelf(b""))


def test_a_child_that_was_killed_is_replaced_and_the_image_decoded(decoder_process, shelf):
    file = shelf(GOOD["png"])
    decoder_process.measure(file)
    first = decoder_process.pid
    os.kill(first, signal.SIGKILL)
    assert decoder_process.measure(file) == (64, 48)
    assert decoder_process.pid != first


def test_a_child_that_was_killed_in_the_middle_is_replaced_and_the_image_decoded(shelf):
    file = shelf(images.encoded(images.noise(8), "PNG", compress_level=1))
    with DecoderProcess(pixels=PIXELS) as decoder_process:
        decoder_process.measure(file)
        first = decoder_process.pid
        killer = threading.Timer(0.05, os.kill, (first, signal.SIGKILL))
        killer.start()
        decoder_process.develop(file, long_side=336, out=file.with_name("out"))
        killer.join()
        assert decoder_process.pid != first


def test_a_disk_without_room_is_no_fault_of_the_image(decoder_process, shelf):
    with pytest.raises(FullError):
        decoder_process.develop(
            shelf(GOOD["png"]), long_side=336, out=shelf(GOOD["png"]).with_name("no folder") / "out"
        )
    assert decoder_process.measure(shelf(GOOD["png"])) == (64, 48)
