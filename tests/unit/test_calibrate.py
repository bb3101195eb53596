"""What is tried, what is best of it, and what is kept of that."""

import json
import os
from dataclasses import replace

import pytest
from fakes import machine

from edge_agent.base.errors import SettingsError
from edge_agent.bench.calibrate import (
    AGREE_TOKENS,
    GAIN_MIN,
    THREADS,
    Axis,
    Tried,
    axes,
    leading_tokens,
    plain,
    steps,
    walk,
)
from edge_agent.models import measurements
from edge_agent.models.measurements import ENTRIES_MAX, FILE, StoredMeasurement, fingerprint, identity, keep, measured
from hardware.machine import Accelerator, Kind, Memory, Vendor

PLAIN = plain("openvino", "cpu")
SIZE, HINT = "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_PRECISION_HINT"
CACHE = "KV_CACHE_PRECISION"
SIZES = Axis(SIZE, ("32", "128"))
HINTS = Axis(HINT, ("bf16",))


def words(text):
    return tuple((f"{word} ", 1) for word in text.split())


SENSE = tuple(words(f"{start} and then look at the oil and write down what you see") for start in ("Stop", "Go", "No"))
GIBBERISH = tuple(words("the the the the the the the the the the the the") for _ in SENSE)
TURNED = tuple((*answer[:AGREE_TOKENS], *words("or call the team")) for answer in SENSE)
"""Departs late, as rounding does."""


HERE = replace(machine(), memory=Memory(24 * 2**30, 16 * 2**30, 0, None))


def with_cpu(**fields):
    return replace(HERE, cpu=replace(HERE.cpu, **fields))


def cores(granted, *, physical=None, logical=None, quota=None, flags=(), architecture="x86_64"):
    return with_cpu(
        granted_cores=granted,
        physical_cores=physical or granted,
        logical_cpus=logical or granted,
        quota_cores=quota,
        flags=flags,
        architecture=architecture,
    )


class Machinery:
    """Answers for settings by a table: speed, and a text other than sense."""

    def __init__(self, default_per_s=10.0, **texts):
        self.asked = []
        self.speeds = {(): default_per_s}
        self.answers = {}
        self.faults = {}

    def __call__(self, options):
        self.asked.append(dict(options))
        key = tuple(sorted(options.items()))
        if key in self.faults:
            return Tried(options, fault=self.faults[key])
        speed = self.speeds.get(key, 10.0)
        return Tried(options, (speed, speed * 1.01, speed * 0.99), self.answers.get(key, SENSE))

    def set(self, per_s=10.0, *, answers=SENSE, fault="", **options):
        key = tuple(sorted(options.items()))
        self.speeds[key], self.answers[key] = per_s, answers
        if fault:
            self.faults[key] = fault
        return self


def find(attempt, along=(SIZES, HINTS), *, default=None, reference=PLAIN, meaning=True):
    return walk(default or {}, along, reference=reference, meaning=meaning, attempt=attempt)


def remark(calibration, **options):
    (found,) = (each.remark for each in calibration.verdicts if each.tried.options == options)
    return found


# What is tried


@pytest.mark.parametrize(
    ("backend", "device", "there", "expected"),
    [
        ("onnx", "cpu", cores(1), {"session.intra_op.allow_spinning": ("0",)}),
        ("onnx", "cpu", cores(4), {THREADS: ("3",), "session.intra_op.allow_spinning": ("0",)}),
        (
            "onnx",
            "cpu",
            cores(4, architecture="aarch64", flags=("bf16",)),
            {
                THREADS: ("3",),
                "session.intra_op.allow_spinning": ("0",),
                "mlas.enable_gemm_fastmath_arm64_bfloat16": ("1",),
            },
        ),
        ("openvino", "cpu", cores(2), {SIZE: ("0", "32", "64", "128"), THREADS: ("1",), CACHE: ("f16",)}),
        (
            "openvino",
            "cpu",
            cores(2, flags=("avx2", "avx512_bf16")),
            {SIZE: ("0", "32", "64", "128"), THREADS: ("1",), HINT: ("bf16",), CACHE: ("f16",)},
        ),
        ("openvino", "gpu", cores(2), {SIZE: ("0", "32", "128")}),
        ("openvino", "npu", cores(2), {"GENERATE_HINT": ("BEST_PERF",)}),
        ("onnx", "cuda", cores(2), {"enable_cuda_graph": ("1",)}),
        ("somebody's", "cpu", cores(2), {}),
    ],
)
def test_what_is_worth_trying(backend, device, there, expected):
    """By backend, device and processor; never what the backend does on its own."""
    found = axes(backend, device, there)
    assert {axis.option: axis.values for axis in found} == expected
    assert steps(found, None) == 1 + sum(map(len, expected.values()))


def test_four_bits_for_the_cache_are_tried_only_when_asked_for():
    """They halve it, and a handful of tokens says little of what they do to a long answer."""
    asked = axes("openvino", "cpu", cores(2), cache=("u4", "f16"))
    assert Axis(CACHE, ("u4", "f16")) in asked
    assert CACHE not in {axis.option for axis in axes("openvino", "cpu", cores(2), cache=())}
    assert CACHE not in {axis.option for axis in axes("onnx", "cpu", cores(2), cache=("u4",))}


@pytest.mark.parametrize(
    ("there", "counts"),
    [
        (cores(1), ()),
        (cores(2), ("1",)),
        (cores(16), ("15", "8")),
        (cores(4, logical=8), ("8", "3")),
        (cores(3, physical=4, logical=8), ("2",)),
        (cores(4, logical=8, quota=4.0), ("3",)),
    ],
)
def test_numbers_of_threads(there, counts):
    """One less, half of many, and all logical processors where nothing bounds us."""
    assert [axis.values for axis in axes("onnx", "cpu", there) if axis.option == THREADS] == (
        [counts] if counts else []
    )


# What is best


def test_the_best_of_each_setting_are_put_together():
    """The second is tried beside the best of the first."""
    attempt = Machinery().set(12, **{SIZE: "32"}).set(16, **{SIZE: "128"}).set(20, **{SIZE: "128", HINT: "bf16"})
    found = find(attempt)
    assert found.best.options == {SIZE: "128", HINT: "bf16"}
    assert attempt.asked == [PLAIN, {}, {SIZE: "32"}, {SIZE: "128"}, {SIZE: "128", HINT: "bf16"}]
    assert remark(found, **{SIZE: "128"}) == "33% faster"


def test_what_the_default_says_already_is_not_tried_again():
    attempt = Machinery()
    find(attempt, (SIZES,), default={SIZE: "128"})
    assert attempt.asked == [PLAIN, {SIZE: "128"}, {SIZE: "32"}]


@pytest.mark.parametrize("gain", [-0.5, 0.0, GAIN_MIN - 0.01])
def test_what_is_not_faster_beyond_the_noise_leaves_the_default(gain):
    """A setting has its price: it must gain something."""
    found = find(Machinery().set(10 * (1 + gain), **{SIZE: "128"}))
    assert found.best.options == {}


def test_one_lucky_answer_is_no_gain():
    """Every answer must be faster than the fastest of the default."""

    def attempt(options):
        speeds = (10.0, 10.5, 13.0) if not options else (9.0, 14.0, 15.0)
        return Tried(options, speeds, SENSE)

    assert find(attempt, (HINTS,), reference=None).best.options == {}


def test_gibberish_is_turned_down_however_fast_it_is():
    """And is said, with how far the texts agree."""
    found = find(Machinery().set(90, answers=GIBBERISH, **{SIZE: "128"}))
    assert found.best.options == {}
    assert remark(found, **{SIZE: "128"}) == "turned down: texts differ from the reference's after 0 tokens"


def test_texts_that_part_late_have_sense():
    """Where two tokens are about as likely any rounding decides; and one answer of three may part at once."""
    mixed = (GIBBERISH[0], *TURNED[1:])
    found = find(Machinery().set(20, answers=mixed, **{SIZE: "128"}))
    assert found.best.options == {SIZE: "128"}


def test_random_weights_judge_no_setting_but_it_is_said():
    """Every token of theirs is a tie."""
    found = find(Machinery().set(20, answers=GIBBERISH, **{SIZE: "128"}), meaning=False)
    assert found.best.options == {SIZE: "128"}
    assert "as random weights may" in remark(found, **{SIZE: "128"})


def test_a_default_that_talks_gibberish_gives_way_to_what_has_sense():
    """Even where that is slower. The reference itself is never the best: its cache is not planned for."""
    attempt = Machinery().set(90, answers=GIBBERISH).set(5, **{SIZE: "32"}).set(4, **{SIZE: "128"}).set(80, **PLAIN)
    found = find(attempt, (SIZES,))
    assert found.best.options == {SIZE: "32"}


def test_when_nothing_has_sense_nothing_is_best():
    attempt = Machinery().set(answers=GIBBERISH)
    for options in ({SIZE: "32"}, {SIZE: "128"}, {HINT: "bf16"}):
        attempt.set(50, answers=GIBBERISH, **options)
    assert find(attempt).best is None


def test_a_setting_that_does_not_run_is_said_and_passed_over():
    found = find(Machinery().set(fault="no such property", **{SIZE: "32"}).set(20, **{SIZE: "128"}))
    assert found.best.options == {SIZE: "128"}
    assert remark(found, **{SIZE: "32"}) == "does not run: no such property"


def test_a_build_that_does_not_run_is_not_tried_on():
    """It is not the settings."""
    attempt = Machinery().set(fault="no memory").set(fault="no memory", **PLAIN)
    assert find(attempt).best is None
    assert len(attempt.asked) == 2


def test_without_a_reference_the_default_is_the_yardstick():
    found = find(Machinery().set(20, answers=GIBBERISH, **{SIZE: "128"}), reference=None)
    assert found.best.options == {}


@pytest.mark.parametrize(
    ("reference", "other", "tokens"),
    [
        ([("a", 1), ("b", 1), ("c", 1)], [("a", 1), ("bx", 1)], 2),
        ([("ab", 2), ("c", 1)], [("a", 1), ("b", 1), ("d", 1)], 2),
        ([("ab", 2), ("cd", 1)], [("abc", 1)], 2),
        ([("a", 1), ("", 1), ("é", 1)], [("aé", 3)], 3),
        ([("a", 1)], [("b", 1)], 0),
        ([], [("b", 1)], 0),
    ],
)
def test_leading_tokens_are_counted_by_the_text_they_stand_for(reference, other, tokens):
    """However the pieces were cut."""
    assert leading_tokens(tuple(reference), tuple(other)) == tokens


# What is kept

LIBRARIES = {"openvino": "openvino-genai 2026.4.1.0"}
ENTRY = StoredMeasurement(
    machine=fingerprint(HERE),
    model="phi-3.5-mini-openvino-int4",
    backend="openvino",
    device="cpu",
    library=LIBRARIES["openvino"],
    threads=2,
    tokens_per_s=16.5,
    options={SIZE: "128"},
)


def seen(folder, there=HERE, libraries=LIBRARIES):
    return {key: (each.tokens_per_s, dict(each.options)) for key, each in measured(folder, there, libraries).items()}


def test_what_is_kept_is_found_again(tmp_path):
    """By model and device, with its speed, settings and threads; in a folder that may have to be made."""
    keep(tmp_path / "models", ENTRY)
    assert [each.threads for each in measured(tmp_path / "models", HERE, LIBRARIES).values()] == [2]
    assert seen(tmp_path / "models") == {("phi-3.5-mini-openvino-int4", "cpu"): (16.5, {SIZE: "128"})}


def test_a_newer_measurement_takes_the_place_of_the_older(tmp_path):
    keep(tmp_path, ENTRY)
    keep(tmp_path, ENTRY.model_copy(update={"tokens_per_s": 20.0, "library": "openvino-genai 2026.4.1.0"}))
    assert [each.tokens_per_s for each in measurements.read(tmp_path)] == [20.0]


ARC = Accelerator(Kind.GPU, Vendor.INTEL, "Arc", driver="xe", driver_version="1", node="/dev/dri/renderD128")


@pytest.mark.parametrize(
    "other",
    [
        with_cpu(model="another"),
        with_cpu(granted_cores=1),
        with_cpu(flags=("avx2",)),
        replace(HERE, memory=replace(HERE.memory, total_bytes=8 * 2**30)),
        replace(HERE, accelerators=(ARC,)),
    ],
)
def test_another_machine_has_measurements_of_its_own(tmp_path, other):
    keep(tmp_path, ENTRY)
    assert seen(tmp_path, other) == {}


def test_the_same_machine_stays_itself():
    """After another kernel's idea of its memory, or with another group of users."""
    there = replace(HERE, accelerators=(ARC,))
    memory = replace(HERE.memory, total_bytes=HERE.memory.total_bytes - 2**20, available_bytes=1)
    later = replace(there, memory=memory, kernel="7.0", accelerators=(replace(ARC, usable=False, node=None),))
    assert fingerprint(later) == fingerprint(there)
    assert fingerprint(replace(there, accelerators=(replace(ARC, driver_version="2"),))) != fingerprint(there)


def test_another_version_of_the_library_is_measured_anew(tmp_path):
    keep(tmp_path, ENTRY)
    assert seen(tmp_path, libraries={"openvino": "openvino-genai 2027.0"}) == {}
    assert seen(tmp_path, libraries={}) == {}


def damaged(content):
    return [
        b"",
        content[: len(content) // 2],
        b"\xff\xfe\x00garbage",
        b"[]",
        b"null",
        b'{"version": 99, "measurements": []}',
        b'{"version": 1}',
        b'{"version": 1, "measurements": {"a": 1}}',
        b"[" * 200_000,
        content + b" " * measurements.FILE_BYTES_MAX,
    ]


@pytest.mark.parametrize("number", range(10))
def test_a_damaged_file_is_as_if_there_were_none(tmp_path, number):
    """And the next measurement makes it whole."""
    path = keep(tmp_path, ENTRY)
    path.write_bytes(damaged(path.read_bytes())[number])
    assert seen(tmp_path) == {}
    keep(tmp_path, ENTRY)
    assert len(seen(tmp_path)) == 1


@pytest.mark.parametrize(
    "field",
    [
        {"tokens_per_s": -1},
        {"tokens_per_s": float("nan")},
        {"tokens_per_s": "fast"},
        {"options": {"a": 1}},
        {"options": {str(number): "1" for number in range(33)}},
        {"options": {"a": "1" * 201}},
        {"model": ""},
        {"threads": None},
    ],
)
def test_an_entry_that_is_not_understood_is_passed_over(tmp_path, field):
    """And what stands beside it is used; fields of a later version do no harm."""
    path = keep(tmp_path, ENTRY)
    content = json.loads(path.read_text())
    (entry,) = content["measurements"]
    content["measurements"] = [entry | field | {"device": "gpu"}, entry | {"colour": "red"}, 7, None]
    path.write_text(json.dumps(content))
    assert list(seen(tmp_path)) == [("phi-3.5-mini-openvino-int4", "cpu")]


def test_the_file_has_bounds(tmp_path):
    """The oldest measurements go."""
    path = keep(tmp_path, ENTRY)
    content = json.loads(path.read_text())
    (entry,) = content["measurements"]
    content["measurements"] = [entry | {"model": f"model {number}"} for number in range(ENTRIES_MAX)]
    path.write_text(json.dumps(content))
    keep(tmp_path, ENTRY)
    names = [each["model"] for each in json.loads(path.read_text())["measurements"]]
    assert len(names) == ENTRIES_MAX
    assert (names[0], names[-1]) == ("model 1", ENTRY.model)


def test_a_write_that_fails_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    """The disk is full as the new one is written."""
    keep(tmp_path, ENTRY)

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="cannot be written: No space left"):
        keep(tmp_path, ENTRY.model_copy(update={"tokens_per_s": 1.0}))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert seen(tmp_path)["phi-3.5-mini-openvino-int4", "cpu"][0] == 16.5


def test_a_folder_is_known_by_its_configuration_and_sizes(tmp_path):
    """Not by its name or the weights themselves, which take a minute to read; notes of ours do not count."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "openvino_model.bin").write_bytes(b"12")
    first = identity(tmp_path)
    (tmp_path / ".manifest.json").write_text("{}")
    assert identity(tmp_path) == first
    (tmp_path / "config.json").write_text("[]")
    other = identity(tmp_path)
    (tmp_path / "openvino_model.bin").write_bytes(b"123")
    assert len({first, other, identity(tmp_path)}) == 3
