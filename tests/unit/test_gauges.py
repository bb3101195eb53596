"""What NVIDIA's management library says of its GPUs' work, asked again and again."""

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edge_agent.health.snapshot import Snapshots
from hardware import gauges as module
from hardware.gauges import Gauges, gauges
from hardware.machine import Accelerator, Kind, Memory, Vendor
from hardware.nvidia import NVML_PROGRAM
from hardware.usage import Activity, Clock

LIBRARY = r"""
#include <stdlib.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } rates_t;
static unsigned asked;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 4; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    *gpu = (void *)(0x7f0000000000UL + index);
    return index == 1 ? 15 : 0;  /* NVML_ERROR_GPU_IS_LOST */
}
static unsigned number(void *gpu) { return (unsigned long)gpu & 3; }
int nvmlDeviceGetMinorNumber(void *gpu, unsigned *to) { *to = number(gpu) + 4; return number(gpu) == 3 ? 3 : 0; }
int nvmlDeviceGetUtilizationRates(void *gpu, rates_t *to) {
    to->gpu = 90 + asked++;
    return number(gpu) == 2 ? 3 : 0;  /* NVML_ERROR_NOT_SUPPORTED */
}
int nvmlDeviceGetMemoryInfo(void *gpu, memory_t *to) {
    to->used = 7516192768ULL; to->total = 150754820096ULL; return number(gpu) == 2 ? 3 : 0;
}
int nvmlDeviceGetClockInfo(void *gpu, unsigned kind, unsigned *to) { *to = kind == 1 ? 1980 : 1; return 0; }
int nvmlDeviceGetMaxClockInfo(void *gpu, unsigned kind, unsigned *to) { *to = kind == 1 ? 2010 : 1; return 0; }
int nvmlDeviceGetTemperature(void *gpu, unsigned sensor, unsigned *to) {
    *to = number(gpu) == 3 ? 4000000000u : 61 + sensor; return 0;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *to) { *to = 412345; return number(gpu) == 2 ? 999 : 0; }
"""
"""Signatures, structures and numbers as docs.nvidia.com/deploy/nvml-api has them; three GPUs and a lost one."""
SLEEPS = ("sys/devices/pci0000:00/0000:01:00.0", "sys/bus/pci/devices/0000:01:00.0")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program with a library built from `LIBRARY`."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler (cc) to build a library with")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(LIBRARY)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "nvml.c"], check=True, timeout=60)
    return (sys.executable, "-I", "-S", str(NVML_PROGRAM), "--follow", str(library))


@pytest.fixture
def opened():
    """Makes gauges that are closed after the test."""
    made = []

    def make(root, program, **settings):
        made.append(Gauges(root, program=program, patience_s=30, begin_s=30, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def children():
    return {each.pid for each in psutil.Process().children() if str(NVML_PROGRAM) in each.cmdline()}


def test_each_gpu_is_read_and_what_it_does_not_tell_is_absent(tmp_path, program, opened):
    reading = opened(tmp_path, program)
    clock = Clock(1980, None, 2010)
    full = Activity("nvidia4", 90, clock=clock, memory_used_bytes=7_516_192_768, celsius=61, watts=412.345)
    silent = Activity("nvidia6", clock=clock, celsius=61)
    unbelievable = Activity("nvidia3", 92, clock=clock, memory_used_bytes=7_516_192_768, watts=412.345)
    assert reading.read() == (full, silent, unbelievable)
    before = children()
    assert reading.read()[0].busy_percent == 93
    assert children() == before  # the same child, asked again
    reading.close()
    assert not children()


def test_an_older_library_that_lacks_functions_tells_the_rest(tmp_path, program, opened):
    source = "\n".join(line for line in LIBRARY.splitlines() if "PowerUsage" not in line)
    (tmp_path / "old.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.c"], check=True, timeout=60)
    (first, *_) = opened(tmp_path, (*program[:-1], str(tmp_path / "old.so"))).read()
    assert (first.watts, first.celsius) == (None, 61)


def test_they_are_part_of_telemetry(tmp_path, program, opened):
    snapshots = Snapshots(
        tmp_path,
        memory=Memory(None, None, None, None),
        state_dir=tmp_path,
        generated=lambda: 0,
        gpus=opened(tmp_path, program),
    )
    (first, second, _) = snapshots.take(snapshots.look()).accelerators
    told = (first.name, first.clock_mhz, first.memory_used_bytes, first.celsius, first.power_watts)
    assert told == ("nvidia4", 1980.0, 7_516_192_768, 61.0, 412.3)
    assert second.model_dump(exclude_none=True) == {"name": "nvidia6", "clock_mhz": 1980.0, "celsius": 61.0}
    snapshots.close()
    assert not children()


def test_a_card_that_sleeps_is_left_asleep(tmp_path, program, opened):
    folder = tmp_path / SLEEPS[0]
    folder.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x2335"), ("class", "0x030200")):
        (folder / name).write_text(text + "\n")
    (folder / "power").mkdir()
    (tmp_path / SLEEPS[1]).parent.mkdir(parents=True)
    (tmp_path / SLEEPS[1]).symlink_to(folder)
    reading = opened(tmp_path, program)
    (folder / "power/runtime_status").write_text("suspended\n")
    assert (reading.read(), children()) == ((), set())
    (folder / "power/runtime_status").write_text("active\n")
    assert reading.read()
    (folder / "power/runtime_status").write_text("suspended\n")
    assert (reading.read(), children()) == ((), set())


@pytest.mark.parametrize(
    "source",
    [
        "import threading; threading.Event().wait()",
        "raise SystemExit(1)",
        "print('no json', flush=True); input()",
        "print('[{}', flush=True); input()",
        "print('[{\"name\": 1}]', flush=True); input()",
    ],
)
def test_a_library_that_does_not_answer_is_left_for_a_while(tmp_path, source):
    """It is not there, hangs in a sick driver, or talks nonsense: no GPU is told of, and nobody is held up again."""
    now_s, began = 0.0, tmp_path / "began"
    count = f"open({str(began)!r}, 'a').write('x'); "
    reading = Gauges(
        tmp_path, program=(sys.executable, "-c", count + source), begin_s=1.0, patience_s=1.0, now_s=lambda: now_s
    )
    assert (reading.read(), reading.read()) == ((), ())
    assert began.read_text() == "x"
    now_s = module.AGAIN_S + 1
    assert reading.read() == ()
    assert began.read_text() == "xx"
    reading.close()


def test_only_a_machine_of_ours_with_its_driver_is_asked(tmp_path):
    card = Accelerator(Kind.GPU, Vendor.NVIDIA, "a card", node="/dev/nvidia0")
    jetson = Accelerator(Kind.GPU, Vendor.NVIDIA, "Orin", node="/dev/nvgpu/igpu0/ctrl")
    assert gauges(Path("/"), [jetson]) is None
    assert gauges(tmp_path, [card]) is None
    assert gauges(Path("/"), [jetson, card]) is not None
